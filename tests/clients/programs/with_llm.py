"""The `llm` command, with a model that speaks OpenAI's API."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scene import MODEL, QUESTION, SETTINGS, STEERED, URL, tell

with tempfile.TemporaryDirectory() as folder:
    models = "".join(
        f"- model_id: {ours}\n  model_name: '{name}'\n  api_base: {URL}/v1\n"
        for ours, name in (("plain", MODEL), ("steered", STEERED))
    )
    Path(folder, "extra-openai-models.yaml").write_text(models)

    def llm(*arguments: str) -> str:
        options = [part for name, value in SETTINGS.items() for part in ("-o", name, str(value))]
        command = [str(Path(sys.executable).with_name("llm")), "prompt", QUESTION, *options, *arguments]
        environment = {**os.environ, "LLM_USER_PATH": folder}
        return subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout

    tell(plain=llm("-m", "plain", "--no-stream"), streamed=llm("-m", "plain"), steered=llm("-m", "steered"))
