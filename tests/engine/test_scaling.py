"""What docs/scaling.md says follows from the code, and the model's limits are the ones arithmetic gives."""

from pathlib import Path

import pytest

from spark_seg.engine import scaling
from spark_seg.engine.scaling import BACKWARD, HDR, NDR, NVLINK, Cluster, Load, predict

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
MEASURED = DOCUMENT.with_name("benchmarks.md")


def load(**changes: float) -> Load:
    values = dict(reduced=2e8, gathered=0.0, batch=8, rate=1000.0, decode=0.0, read=0.0, messages=0)
    return Load(**{**values, **changes})  # type: ignore[arg-type]


def test_one_gpu_sends_nothing() -> None:
    step = predict(load(gathered=1e9), 1, Cluster())
    assert step.exposed == 0
    assert step.efficiency == 1
    assert step.images_per_s == pytest.approx(1000)


def test_reducing_hides_behind_the_backward_pass_and_gathering_does_not() -> None:
    slow = Cluster(between=HDR)
    backward = BACKWARD * 8 / 1000
    hidden = predict(load(reduced=backward * HDR.bandwidth), 16, slow)
    assert hidden.exposed == 0
    more = predict(load(reduced=2 * backward * HDR.bandwidth * 16 / 15), 16, slow)
    assert more.exposed == pytest.approx(backward)
    gathered = predict(load(reduced=0.0, gathered=1e8), 16, slow)
    assert gathered.exposed == pytest.approx(1e8 * 15 / 16 / HDR.bandwidth)


def test_the_slower_link_decides_once_a_ring_leaves_the_node() -> None:
    cluster = Cluster()
    assert cluster.ring(1e9, 8) == pytest.approx(1e9 / NVLINK.bandwidth + 7 * NVLINK.latency)
    assert cluster.ring(1e9, 16) == pytest.approx(1e9 / NDR.bandwidth + 15 * NDR.latency)
    assert cluster.ring(1e9, 1) == 0


def test_cores_and_storage_limit_a_step() -> None:
    cores = predict(load(decode=0.01), 8, Cluster(cores=4))
    assert cores.limit == "cores"
    assert cores.images_per_s == pytest.approx(8 * 4 / 0.01)
    files = predict(load(read=1e6), 64, Cluster(storage=1e9))
    assert files.limit == "storage"
    assert files.images_per_s == pytest.approx(1000)
    assert scaling.storage_limit(100, 1e6, 1e9) == pytest.approx(10)
    assert predict(load(), 2, Cluster()).limit == "GPU"


def test_the_first_projects_throughput_follows_one_shared_resource() -> None:
    own, shared = scaling.shared_cost(scaling.FIRST_PROJECT)
    for world, rate in scaling.FIRST_PROJECT.items():
        assert world / (own + (world - 1) * shared) == pytest.approx(rate, rel=0.02)
    assert 1 / own == pytest.approx(72.8, rel=0.01)
    assert 2000 < 1 / shared < 3000
    exact = {n: n / (0.01 + (n - 1) * 0.001) for n in (1, 2, 8)}
    assert scaling.shared_cost(exact) == pytest.approx((0.01, 0.001))


def cells(table: str, first: str) -> list[str]:
    """A row's cells after the first, which tells it."""
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def mean_ms(cell: str) -> float:
    values = [float(part) for part in cell.split("/")]
    return sum(values) / len(values) / 1000


def test_what_is_called_measured_is_what_was_measured() -> None:
    """The inputs were those of an older table once: twice the cores, and no row at the rate that was seen."""
    text = MEASURED.read_text()
    left_to_the_gpu = text.partition("The same without normalisation")[2]
    labels = cells(left_to_the_gpu, "ours, labels cached")
    halves = cells(left_to_the_gpu, "ours, half-size JPEG")
    assert scaling.SMALL.decode == pytest.approx(mean_ms(labels[0]))
    assert scaling.REAL.decode == pytest.approx(mean_ms(labels[3]))
    assert scaling.HALF.decode == pytest.approx(mean_ms(halves[3]))
    step = cells(text, "b2, training step, `cuda_graphs`")
    (rate,) = [rate for rate in scaling.RATES["b2"] if rate.measured]
    assert (rate.batch, rate.value) == (int(step[0]), float(step[3]))
    assert f"at {scaling.HALF.picture / 1e3:.0f} kB a frame" in (
        DOCUMENT.with_name("data.md").read_text()
    )


def test_a_table_counts_whole_gpus() -> None:
    """2.58 that a storage feeds are two that never wait, not three."""
    (row,) = [row for row in scaling.feeding_table() if row["img/s of one GPU"] == "1000, assumed"]
    assert row["GPUs that shared storage of 1 GB/s feeds"] == "5 / 2 / 14"


@pytest.mark.slow
def test_the_document_holds_the_tables_of_the_code() -> None:
    from spark_seg.benchmark.timing import markdown

    text = DOCUMENT.read_text()
    tables = scaling.tables()
    assert len(tables) == 7
    for name, rows in tables.items():
        table = "\n".join(markdown(rows))
        assert table in text, (
            f"{name}: put `python -m spark_seg.engine.scaling`'s table into {DOCUMENT.name}"
        )
    stages = scaling.loads("b2", 1000, 0, 0)
    assert stages[0].gathered == 0
    assert stages[1].gathered == pytest.approx(4 * 24.72e6, rel=1e-3)
    assert stages[3].gathered == 2 * stages[1].gathered
