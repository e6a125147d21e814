"""Files that operating systems, NAS boxes and tools leave among a person's own."""

_NAMES = frozenset(
    {
        "__macosx",  # macOS, in archives; its other files begin with a dot
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
    """True for a file's or folder's name that no one gave to an image or a class: hidden ones,
    such as `._1.jpg`, `.DS_Store` and `.git`, and known ones, such as `@eaDir` and `Thumbs.db`."""
    if name.startswith("."):
        return name not in (".", "..")
    folded = name.casefold()
    return folded in _NAMES or folded.endswith(_ENDINGS)
