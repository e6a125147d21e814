"""Code that every package uses: errors, strict settings, files, locks, console output, hardware."""
