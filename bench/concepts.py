"""The concepts of the calibration measurements, and questions that no concept and no calibration has seen.

All but the first share the questions, openings and held-out questions of happy; their personas are their own.
"""

from __future__ import annotations

from pathlib import Path

import yaml

HAPPY = Path(__file__).parent.parent / "vectors" / "happy" / "concept.yaml"

_PERSONAS: dict[str, tuple[tuple[str, str], tuple[str, ...], tuple[str, ...]]] = {
    "angry": (
        ("angry", "calm"),
        ("furious and ready to shout", "boiling with rage", "irritated by everybody", "bitter and full of spite"),
        ("calm and at ease", "peaceful and relaxed", "patient with everybody", "gentle and full of good will"),
    ),
    "formal": (
        ("formal", "casual"),
        (
            "extremely formal and official",
            "a strict civil servant",
            "dignified and ceremonious",
            "a professor at a solemn occasion",
        ),
        ("extremely casual and chatty", "an easy-going teenager", "sloppy and full of slang", "a friend at a barbecue"),
    ),
    "pirate": (
        ("pirate", "news reader"),
        ("a pirate on the high seas", "an old buccaneer with a wooden leg", "a rough sea robber", "the captain of a pirate ship"),
        ("a sober news reader", "an announcer on the evening news", "a careful reporter", "the editor of a newspaper"),
    ),
    "unsure": (
        ("uncertain", "confident"),
        ("extremely unsure of yourself", "hesitant and full of doubts", "afraid to be wrong", "timid and wavering"),
        ("extremely sure of yourself", "decisive and free of doubts", "certain to be right", "bold and assertive"),
    ),
}


def concept_texts() -> dict[str, str]:
    """The YAML text of each concept by name."""
    happy = HAPPY.read_text(encoding="utf-8")
    shared = yaml.safe_load(happy)
    texts = {"happy": happy}
    for name, (poles, positive, negative) in _PERSONAS.items():
        changes = {
            "name": name,
            "description": "",
            "poles": dict(zip(("positive", "negative"), poles, strict=True)),
            "personas": {"positive": list(positive), "negative": list(negative)},
        }
        texts[name] = yaml.safe_dump({**shared, **changes}, sort_keys=False)
    return texts
