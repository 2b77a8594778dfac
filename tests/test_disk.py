"""What a build needs of the disk, against sums by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.random_checkpoint import Model, element_count, write_transformer
from flowblending import FlowBlendingError
from flowblending.engine import disk
from flowblending.engine.disk import Need, Step, check_disk, need
from flowblending.export.model_files import model_files
from flowblending.export.size import OVERHEAD, Fp8Blocks, graph_bytes
from flowblending.export.spec import Precision


def test_the_most_is_at_the_worst_moment() -> None:
    # The second component's graph lies beside both plans; the last one's is small.
    assert need([Step(kept=10, beside=10), Step(kept=30, beside=30), Step(kept=5, beside=5)]) == Need(kept=45, most=70)
    assert need([Step(kept=10, beside=0), Step(kept=30, beside=0)]) == Need(kept=40, most=40)


def test_it_is_said_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 50_000_000_000)
    line = check_disk(Need(kept=29_000_000_000, most=50_000_000_000), tmp_path, Path("wan"))
    assert line == "disk: up to 50.0 GB are needed, 21.0 GB of it only meanwhile, 50.0 GB are free"
    with pytest.raises(FlowBlendingError, match=r"Building wan takes up to 57\.2 GB of disk, but 50\.0 GB are free"):
        check_disk(Need(kept=29_000_000_000, most=57_200_000_000), tmp_path, Path("wan"))


def test_bytes_of_a_graph(tmp_path: Path) -> None:
    settings = {"num_layers": 5, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 40, "text_dim": 16}
    model = Model(kind="WanTransformer3DModel", settings=settings)
    write_transformer(model, tmp_path)
    files, count = model_files(tmp_path), element_count(model)
    assert graph_bytes(files, Precision.FP32) == OVERHEAD + 4 * count
    assert graph_bytes(files, Precision.BF16) == OVERHEAD + 2 * count
    # Of five blocks, three lie between one kept at either end.
    block = element_count(model) - element_count(model.cut(4))
    blocks = Fp8Blocks(count=5, keep=1, base=Precision.BF16)
    assert graph_bytes(files, Precision.FP8, blocks) == OVERHEAD + 2 * count - 3 * block
