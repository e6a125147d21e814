"""Files that operating systems, network storage and tools leave among the user's images."""

from pathlib import Path

LITTER = (
    "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
    "@eaDir/1.jpg@SynoEAStream",
    ".@__thumb/default1.jpg",
    "#recycle/old.jpg",
    "@Recycle/old.jpg",
    "__MACOSX/._1.jpg",
    ".DS_Store",
    "._1.jpg",
    "Icon\r",
    "Thumbs.db",
    "THUMBS.DB",
    "ehthumbs.db",
    "desktop.ini",
    "Desktop.ini",
    ".thumbnails/1.png",
    ".Trash-1000/files/1.jpg",
    "$RECYCLE.BIN/1.jpg",
    "System Volume Information/1.jpg",
    "lost+found/1.jpg",
    ".ipynb_checkpoints/1-checkpoint.jpg",
    ".git/HEAD",
)


def write_litter(folder: Path, content: bytes) -> None:
    """Write all these files into `folder` and into each folder below it."""
    for place in (folder, *(f for f in folder.rglob("*") if f.is_dir())):
        for name in LITTER:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
