"""`/api/tags`, `/api/ps`, `/api/show` and `/api/version`: what programs for Ollama ask before they use a model."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from localsteer.llama import library
from localsteer.llama.infill import can_infill
from localsteer.llama.model import Model
from localsteer.server.answers import Service

# The version of Ollama whose API this is. Visual Studio Code refuses what is older than 0.6.4.
_SPOKEN = "0.12.11"
# When a model expires that stays as long as the server runs; Ollama says so of those that are kept for ever.
_NEVER = "2318-01-01T00:00:00Z"


class OllamaShow(BaseModel):
    """POST /api/show."""

    model: str | None = Field(default=None, max_length=2000)
    name: str | None = Field(default=None, max_length=2000)


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/api", tags=["Ollama"])
    model = service.model
    # Of the file that was opened, whatever becomes of that while it is served.
    modified = datetime.fromtimestamp(model.path.stat().st_mtime, UTC).isoformat().replace("+00:00", "Z")

    def listed() -> list[dict[str, Any]]:
        return [_listed(model, name, modified) for name in service.steerings.listed()]

    @routes.get("/tags")
    def tags() -> dict[str, Any]:
        """The model, and one more name for each preset, and for what it can be steered by."""
        return {"models": listed()}

    @routes.get("/ps")
    def running() -> dict[str, Any]:
        """What is loaded: the same."""
        on_gpu = model.gpu_layers != 0 and bool(library.load().llama_supports_gpu_offload())
        loaded = {
            "expires_at": _NEVER,
            "size_vram": model.size_bytes if on_gpu else 0,
            "context_length": service.engine.n_ctx,
        }
        return {"models": [{**one, **loaded} for one in listed()]}

    @routes.post("/show")
    def show(body: OllamaShow) -> dict[str, Any]:
        """About the model."""
        service.steerings.of_model_name(body.model or body.name or "")
        info = {
            "general.architecture": model.architecture,
            "general.parameter_count": model.n_params,
            f"{model.architecture}.context_length": service.engine.n_ctx,
            f"{model.architecture}.embedding_length": model.n_embd,
            f"{model.architecture}.block_count": model.n_layer,
        }
        template = model.chat_template
        return {
            "modelfile": "",
            "parameters": f"num_ctx {service.engine.n_ctx}",
            "template": model.template_beside or model.metadata("tokenizer.chat_template") or "",
            "details": _details(model),
            "model_info": info,
            "capabilities": [
                "completion",
                "tools",
                "embedding",
                *(["thinking"] if template is not None and template.thinking is not None else []),
                *(["insert"] if can_infill(model) else []),
            ],
            "modified_at": modified,
        }

    @routes.get("/version")
    def version() -> dict[str, str]:
        """Of Ollama's API, as far as it is spoken here, and of localsteer."""
        return {"version": _SPOKEN, "localsteer": metadata.version("localsteer")}

    return routes


def _listed(model: Model, name: str, modified: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": modified,
        "size": model.size_bytes,
        "digest": model.fingerprint.content,
        "details": _details(model),
    }


def _details(model: Model) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.architecture,
        "families": [model.architecture],
        "parameter_size": f"{model.n_params / 1e6:.0f}M" if model.n_params < 1e9 else f"{model.n_params / 1e9:.1f}B",
        "quantization_level": model.file_type,
    }
