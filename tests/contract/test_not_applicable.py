"""Lines of the checklist that do not apply, each with the reason, asserted."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_checklist_22_not_applicable_because_no_engine_is_ever_put_to_sleep() -> None:
    paths = (ROOT / "stages" / "rollouts").glob("*.py")
    # Waiting between two tries is no engine's sleep.
    sources = [path.read_text(encoding="utf-8").replace("time.sleep(", "") for path in paths]
    assert sources
    for word in ("enable_sleep_mode", ".sleep(", "wake_up"):
        assert not any(word in source for source in sources)
