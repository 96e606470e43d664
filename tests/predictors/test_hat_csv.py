from pathlib import Path

import numpy as np
import pytest

from predictors.hat_csv import FEATURES, INNER, LATENCIES, SOURCE, STEPS, VOCABULARY, operations, read_hat_csv

ROW = ["640", "6", "2048.0", "6.0", "512", "3", "1024.0", "4.0", "8.0", "2.0", "5.5", "120.25"]
HEADER = [*FEATURES, *LATENCIES]


def write(path: Path, rows: list[list[str]], header: list[str] = HEADER) -> Path:
    path.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    return path


def test_latencies_are_the_sum_of_both_halves_in_seconds(tmp_path: Path) -> None:
    table = read_hat_csv(write(tmp_path / "gpu.csv", [ROW, ROW]))
    assert table.name == "gpu"
    assert table.features_NF.shape == (2, 10)
    assert table.seconds_N == pytest.approx([0.12575, 0.12575])


def test_terms_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    small = ["512", "6", "512", "2", "512", "1", "512", "2", "2", "1", "5", "50"]
    table = read_hat_csv(write(tmp_path / "a.csv", [ROW, small]))
    alone = read_hat_csv(write(tmp_path / "b.csv", [small]))
    np.testing.assert_array_equal(table.terms_NT[1], alone.terms_NT[0])
    assert (table.terms_NT > 0).all()
    assert (table.terms_NT <= 1).all()


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([], HEADER, "holds no measured network"),
        ([ROW[:-1]], HEADER[:-1], "lacks the columns latency_mean_decoder"),
        ([[*ROW[:-1], "-3"]], HEADER, "line 2: latency_mean_decoder must be a positive number, got -3"),
        ([ROW, [*ROW[:-1], "nan"]], HEADER, "line 3: latency_mean_decoder must be a positive number, got nan"),
        ([["many", *ROW[1:]]], HEADER, "line 2: encoder_embed_dim must be a number, got 'many'"),
        ([ROW[:-1]], HEADER, "line 2: latency_mean_decoder must be a number, got None"),
        ([[], [], [*ROW[:-1], "-3"]], HEADER, "line 4: latency_mean_decoder must be a positive number, got -3"),
        ([[*ROW[:10], "5", "5", "120", "25"]], HEADER, "line 2 has more fields than the header; decimal commas"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, rows: list[list[str]], header: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_hat_csv(write(tmp_path / "bad.csv", rows, header))


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = write(tmp_path / "excel.csv", [ROW])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_hat_csv(path).features_NF.shape == (1, 10)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as a table of latencies"):
        read_hat_csv(tmp_path / "none.csv")


def test_operations_do_the_arithmetic_of_a_translation() -> None:
    """Multiply-accumulates of encoder, decoder steps, keys and values of the sentence, and scores, by hand."""
    enc, dec, depth, beam, attended = 640, 512, 3, 5, 60
    per_encoder = SOURCE * (4 * enc * INNER + 2 * enc * 2048) + SOURCE * (SOURCE + 1) * INNER
    per_step = beam * (6 * dec * INNER + 2 * dec * 1024) + 2 * beam * INNER * (STEPS // 2 + 1 + attended)
    once, scores = attended * enc * 2 * INNER, beam * dec * VOCABULARY
    expected = 6 * per_encoder + depth * (STEPS * per_step + once) + STEPS * scores
    found = operations(np.array([float(text) for text in ROW[:10]]), beam=beam)
    assert sum(count * op.flops for count, op in found) == 2 * expected
