"""What every room uses: errors, strict settings objects, files, locks, fingerprints, console
output, memory and processors."""
