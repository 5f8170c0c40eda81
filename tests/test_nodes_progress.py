"""What a search says of itself while it runs."""

from types import SimpleNamespace

from latent_directions.nodes.progress import SearchProgress


def test_time_left():
    said = []
    progress = SearchProgress(40)
    progress.node, progress.server = "7", SimpleNamespace(send_progress_text=lambda *text: said.append(text))
    progress.started -= 2
    progress(10)
    progress(11)  # too soon after the first
    progress.started, progress.shown = progress.started - 6, 0.0
    progress(50)
    assert said == [
        ("10 of about 40 model evaluations, 6 s left", "7"),
        ("50 of about 40 model evaluations, 0 s left", "7"),
    ]
