"""Volume knobs for the behaviour of a local language model: the public Python API.

Names are imported when they are first used, so that `import localsteer` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localsteer.answer import Answer, Request
    from localsteer.calibrated import Calibration
    from localsteer.calibration.calibrate import CalibrationSettings, Calibrator
    from localsteer.combination import combine
    from localsteer.concept_file import load_concept
    from localsteer.contrast import Contrast, read_prompt_files
    from localsteer.discovery import find_models, resolve_model
    from localsteer.errors import LocalsteerError
    from localsteer.export.bake import bake
    from localsteer.export.llama_cpp import export_vector
    from localsteer.extraction import ExtractionSettings, extract
    from localsteer.generation import Generator
    from localsteer.importing import import_vector
    from localsteer.library import load_vector, loader
    from localsteer.llama.chat_template import Message
    from localsteer.llama.model import Model
    from localsteer.llama.sampling import Sampling
    from localsteer.parallel import generate_many
    from localsteer.policy.arm import arm
    from localsteer.policy.controller import Controller
    from localsteer.policy.examples import read_examples
    from localsteer.policy.fit import FitSettings, fit_probe
    from localsteer.policy.replay import replay
    from localsteer.prompt import prompt_tokens
    from localsteer.scoring import Scored, answer_nll, reread
    from localsteer.steering import Plan, Steering, parse_steering, resolve
    from localsteer.vector import ControlVector, Provenance
    from localsteer.vector_file import read_vector, write_vector

_HOMES = {
    "Answer": "answer",
    "Calibration": "calibrated",
    "CalibrationSettings": "calibration.calibrate",
    "Calibrator": "calibration.calibrate",
    "Contrast": "contrast",
    "ControlVector": "vector",
    "Controller": "policy.controller",
    "ExtractionSettings": "extraction",
    "FitSettings": "policy.fit",
    "Generator": "generation",
    "LocalsteerError": "errors",
    "Message": "llama.chat_template",
    "Model": "llama.model",
    "Plan": "steering",
    "Provenance": "vector",
    "Request": "answer",
    "Sampling": "llama.sampling",
    "Scored": "scoring",
    "Steering": "steering",
    "answer_nll": "scoring",
    "arm": "policy.arm",
    "bake": "export.bake",
    "combine": "combination",
    "export_vector": "export.llama_cpp",
    "extract": "extraction",
    "find_models": "discovery",
    "fit_probe": "policy.fit",
    "generate_many": "parallel",
    "import_vector": "importing",
    "load_concept": "concept_file",
    "load_vector": "library",
    "loader": "library",
    "parse_steering": "steering",
    "prompt_tokens": "prompt",
    "read_examples": "policy.examples",
    "read_prompt_files": "contrast",
    "read_vector": "vector_file",
    "replay": "policy.replay",
    "reread": "scoring",
    "resolve": "steering",
    "resolve_model": "discovery",
    "write_vector": "vector_file",
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
