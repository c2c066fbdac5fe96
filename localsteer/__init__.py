"""Volume knobs for the behaviour of a local language model: the public Python API.

Names are imported when they are first used, so that `import localsteer` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localsteer.building.dosing import dose
    from localsteer.building.extraction import ExtractionSettings, extract
    from localsteer.building.library import load_vector, loader
    from localsteer.calibration.calibrate import CalibrationSettings, Calibrator
    from localsteer.concepts.concept_file import load_concept
    from localsteer.concepts.contrast import Contrast, read_prompt_files
    from localsteer.discovery import find_models, resolve_model
    from localsteer.engine.generate import Generator, generate_many
    from localsteer.engine.request import Answer, Request
    from localsteer.errors import LocalsteerError
    from localsteer.export.bake import bake
    from localsteer.export.llama_cpp import export_vector
    from localsteer.llama.chat_template import Message
    from localsteer.llama.grammar import Grammar
    from localsteer.llama.model import Model
    from localsteer.llama.sampling import Sampling
    from localsteer.policy.arm import arm
    from localsteer.policy.controller import Controller
    from localsteer.policy.examples import read_examples
    from localsteer.policy.fit import FitSettings, fit_probe
    from localsteer.policy.replay import replay
    from localsteer.reading.prompt import prompt_tokens
    from localsteer.reading.scoring import Scored, answer_nll, reread
    from localsteer.steering.combination import combine
    from localsteer.steering.expression import Steering, parse_steering
    from localsteer.steering.plan import Plan, resolve
    from localsteer.vector.calibration import Calibration
    from localsteer.vector.control_vector import ControlVector, Provenance
    from localsteer.vector.file import read_vector, write_vector
    from localsteer.vector.importing import import_vector

_HOMES = {
    "Answer": "engine.request",
    "Calibration": "vector.calibration",
    "CalibrationSettings": "calibration.calibrate",
    "Calibrator": "calibration.calibrate",
    "Contrast": "concepts.contrast",
    "ControlVector": "vector.control_vector",
    "Controller": "policy.controller",
    "ExtractionSettings": "building.extraction",
    "FitSettings": "policy.fit",
    "Generator": "engine.generate",
    "Grammar": "llama.grammar",
    "LocalsteerError": "errors",
    "Message": "llama.chat_template",
    "Model": "llama.model",
    "Plan": "steering.plan",
    "Provenance": "vector.control_vector",
    "Request": "engine.request",
    "Sampling": "llama.sampling",
    "Scored": "reading.scoring",
    "Steering": "steering.expression",
    "answer_nll": "reading.scoring",
    "arm": "policy.arm",
    "bake": "export.bake",
    "combine": "steering.combination",
    "dose": "building.dosing",
    "export_vector": "export.llama_cpp",
    "extract": "building.extraction",
    "find_models": "discovery",
    "fit_probe": "policy.fit",
    "generate_many": "engine.generate",
    "import_vector": "vector.importing",
    "load_concept": "concepts.concept_file",
    "load_vector": "building.library",
    "loader": "building.library",
    "parse_steering": "steering.expression",
    "prompt_tokens": "reading.prompt",
    "read_examples": "policy.examples",
    "read_prompt_files": "concepts.contrast",
    "read_vector": "vector.file",
    "replay": "policy.replay",
    "reread": "reading.scoring",
    "resolve": "steering.plan",
    "resolve_model": "discovery",
    "write_vector": "vector.file",
}

__all__ = [
    "Answer",
    "Calibration",
    "CalibrationSettings",
    "Calibrator",
    "Contrast",
    "ControlVector",
    "Controller",
    "ExtractionSettings",
    "FitSettings",
    "Generator",
    "Grammar",
    "LocalsteerError",
    "Message",
    "Model",
    "Plan",
    "Provenance",
    "Request",
    "Sampling",
    "Scored",
    "Steering",
    "answer_nll",
    "arm",
    "bake",
    "combine",
    "dose",
    "export_vector",
    "extract",
    "find_models",
    "fit_probe",
    "generate_many",
    "import_vector",
    "load_concept",
    "load_vector",
    "loader",
    "parse_steering",
    "prompt_tokens",
    "read_examples",
    "read_prompt_files",
    "read_vector",
    "replay",
    "reread",
    "resolve",
    "resolve_model",
    "write_vector",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
