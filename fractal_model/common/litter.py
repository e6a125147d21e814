"""Names of files that operating systems, network storage and tools leave among the images."""

_NAMES = frozenset(
    {
        "__macosx",  # macOS, in archives. Its other files begin with a dot.
        "icon\r",
        "network trash folder",
        "temporary items",
        "thumbs.db",  # Windows
        "thumbs.db:encryptable",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        "found.000",
        "lost+found",  # Linux
        "lost.dir",  # Android
        "@eadir",  # Synology
        "@tmp",
        "#recycle",
        "#snapshot",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "@__thumb",
        "~snapshot",  # NetApp
        "__pycache__",
        "picasa.ini",
    }
)
_ENDINGS = ("@synoeastream", "@synoresource", ":zone.identifier")


def is_litter(name: str) -> bool:
    """True if a file or folder of this name is no image and no class. Its name is hidden, such as
    `._1.jpg` or `.git`, or belongs to a system or a tool, such as `@eaDir` or `Thumbs.db`."""
    if name.startswith("."):
        return name not in (".", "..")
    folded = name.casefold()
    return folded in _NAMES or folded.endswith(_ENDINGS)
