"""The table of published weights against the addresses that mmsegmentation ships."""

import importlib.util
import re
from pathlib import Path

import pytest

from spark_seg.errors import UserError
from spark_seg.models.published import SOURCES, VARIANTS, published


def shipped_urls() -> set[str]:
    spec = importlib.util.find_spec("mmseg")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / ".mim" / "configs" / "segformer"
    text = "\n".join(f.read_text() for f in folder.iterdir() if f.suffix in (".py", ".yaml"))
    return set(re.findall(r"https://[^\s']+?\.pth", text))


def test_every_address_is_mmsegs() -> None:
    ours = {published(source, variant).url for source in SOURCES for variant in VARIANTS}
    theirs = shipped_urls()
    assert len(ours) == 18
    assert ours <= theirs
    (left_out,) = theirs - ours
    assert "segformer_mit-b5_512x512_160k_ade20k" in left_out


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_entry(source: str, variant: str) -> None:
    entry = published(source, variant)
    assert re.fullmatch("[0-9a-f]{8}", entry.digest)
    assert entry.file.endswith(f"-{entry.digest}.pth")
    assert f"mit-{variant}_" in entry.file or f"mit_{variant}_" in entry.file
    assert (source in entry.file) is (source != "imagenet")
    assert entry.backbone_only is (source == "imagenet")


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="did you mean 'ade20k'"):
        published("ade20", "b0")
    with pytest.raises(UserError, match="'b6'; there are b0, b1, b2, b3, b4, b5"):
        published("ade20k", "b6")
