"""`localsteer serve`: the HTTP server."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from localsteer.commands.answering import (
    armed_policy,
    limit_for,
    max_dose_option,
    policy_option,
    steer_option,
    think_option,
    with_sampling_options,
)
from localsteer.commands.options import ModelOptions, json_option, parse_special_option, with_model_options
from localsteer.commands.output import note, print_json, progress_bar
from localsteer.engine.batch import RunningBatch
from localsteer.engine.checks import check_anchored_batch
from localsteer.engine.prefix_cache import DEFAULT_CACHE_RAM
from localsteer.errors import LocalsteerError
from localsteer.llama.grammar import vocabulary
from localsteer.llama.memory import keep_few_holes
from localsteer.llama.sampling import Sampling
from localsteer.llama.steerability import steerability
from localsteer.llama.threads import compute_apart
from localsteer.steering.expression import Steering
from localsteer.vector.calibration import Mode

if TYPE_CHECKING:
    from localsteer.policy.arm import ArmedPolicy
    from localsteer.server.guard import Access
    from localsteer.server.steerings import Steerings


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on, or several with commas between; any but this machine's needs --api-key.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any that is free.")
@click.option("--api-key", envvar="LOCALSTEER_API_KEY", help="What requests must show. Also from $LOCALSTEER_API_KEY.")
@click.option("--allow-host", multiple=True, help="A further name that requests may call the server by.")
@click.option(
    "--allow-origin",
    multiple=True,
    help="A page elsewhere that may use it, such as http://localhost:3000, or a host; * for all.",
)
@click.option("--parallel", type=click.IntRange(1, 64), default=4, show_default=True, help="Answers at once.")
@click.option("--queue", type=click.IntRange(0, 10**6), default=32, show_default=True, help="Answers that may wait.")
@click.option(
    "--context",
    "n_ctx",
    type=click.IntRange(8, 10**8),
    help="Tokens of context of each answer. Default: what the model and the memory allow, up to 16,384.",
)
@click.option(
    "--cache-ram",
    type=click.IntRange(0, 10**9),
    default=DEFAULT_CACHE_RAM,
    show_default=True,
    help="MiB of main memory for conversations that lost their place to others: going back to one reads nothing anew.",
)
@steer_option("Steering of requests that name none; several add up.")
@click.option("--anchored", is_flag=True, help="Anchor answers by default: the unsteered model has a say in every token.")
@click.option(
    "--presets",
    "presets_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help='A YAML file: presets: {cheerful: "0.6 happy"}.',
)
@click.option(
    "--vectors", "folder", type=click.Path(file_okay=False, path_type=Path), help="Vectors that requests may name, too."
)
@policy_option
@max_dose_option
@click.option(
    "--list-steerings",
    type=click.IntRange(0, 1000),
    default=12,  # with the presets, a list that fits on a screen
    show_default=True,
    help="Names of the model with a steering behind it (NAME:happy) that programs are offered, beside the presets.",
)
@click.option(
    "--strict-model", is_flag=True, help="Refuse requests that name another model. Default: this one answers, with a note."
)
@click.option(
    "--fixed-steering",
    is_flag=True,
    help="Requests get the default steering, or a preset by name, also in calls of tools and forms: they may ask for no other.",
)
@click.option("-n", "--max-tokens", type=click.IntRange(1, 10**7), help="Longest answer. Default: as much as the context holds.")
@think_option
@with_sampling_options
@click.option("--alias", help="What the model is called in requests. Default: its name in `localsteer models list`.")
@parse_special_option
@json_option
@with_model_options
def command(
    host: str,
    port: int,
    api_key: str | None,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    parallel: int,
    queue: int,
    n_ctx: int | None,
    cache_ram: int,
    steering: Steering,
    anchored: bool,
    presets_file: Path | None,
    folder: Path | None,
    policy_file: str | None,
    max_dose: float | None,
    list_steerings: int,
    strict_model: bool,
    fixed_steering: bool,
    max_tokens: int | None,
    think: bool | None,
    sampling: Sampling,
    alias: str | None,
    parse_special: bool,
    as_json: bool,
    model_options: ModelOptions,
) -> None:
    """Serve a model to programs that speak OpenAI's API or Ollama's, a different steering for every request.

    How long answers are, whether the model thinks, and how tokens are drawn counts for requests that do not say it.
    """
    try:
        from localsteer.server.app import make_app
        from localsteer.server.listener import run
    except ImportError as error:
        raise LocalsteerError(
            f"The server needs packages that are not installed ({error.name}).",
            hint='Run `pip install "localsteer[server]"`.',
        ) from error
    from localsteer.server.answers import Service
    from localsteer.server.defaults import Defaults
    from localsteer.server.engine import Engine
    from localsteer.server.steerings import Steerings, load_presets

    keep_few_holes()
    hosts = [one.strip() for one in host.split(",")]
    access = _access(hosts, api_key, allow_host, allow_origin)
    presets = load_presets(presets_file) if presets_file is not None else {}
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(_bind(hosts[0], port))]
        port = listening[0].getsockname()[1]  # of several addresses the same
        listening += [stack.enter_context(_bind(one, port)) for one in hosts[1:]]
        model = stack.enter_context(model_options.open(parse_special=parse_special))
        name = alias or model_options.name()
        mode: Mode = "anchored" if anchored else "response"
        if anchored:
            check_anchored_batch(model, sampling, parallel)
        if think and (model.chat_template is None or model.chat_template.thinking is None):
            raise LocalsteerError(f"{name} does not think before it answers.", hint="Leave out --think.")

        def prepare() -> tuple[Steerings, ArmedPolicy | None, RunningBatch]:
            limit = limit_for(model, max_dose)
            with progress_bar() as progress:
                steerings = Steerings(
                    model,
                    name,
                    folder=folder,
                    presets=presets,
                    default=steering,
                    mode=mode,
                    limit=limit,
                    list_steerings=list_steerings,
                    strict=strict_model,
                    fixed=fixed_steering,
                    progress=progress,
                )
            armed = stack.enter_context(armed_policy(policy_file, model, limit, mode))
            # Tried here, in a thread that ends, and known from then on: a request's thread that has once computed keeps OpenMP's
            # threads, more than there are cores then, and every decode takes twice as long.
            steerability(model)
            with contextlib.suppress(LocalsteerError):  # where it cannot be had, the requests that want it are told
                vocabulary(model)  # so that the first request that wants JSON need not wait for it
            return steerings, armed, RunningBatch(model, parallel=parallel, n_ctx=n_ctx, cache_ram=cache_ram)

        steerings, armed, batch = compute_apart(prepare)
        engine = Engine(batch, queue=queue)
        stack.enter_context(engine)
        service = Service(model, engine, steerings, armed, Defaults(sampling, max_tokens, think))
        stack.callback(service.stop)
        app = make_app(service, access)
        url = f"http://{_in_url(hosts[0])}:{port}"

        def ready() -> None:
            if as_json:
                print_json({"url": url, "model": name, "parallel": parallel, "context": engine.n_ctx})
            note(f"{name} at {url} (Ctrl-C ends it)")

        run(app, listening, service, ready)


def _access(listening: Sequence[str], api_key: str | None, hosts: tuple[str, ...], origins: tuple[str, ...]) -> Access:
    from localsteer.server.guard import LOOPBACK, Access, is_loopback

    elsewhere = [host for host in listening if not is_loopback(host)]
    if elsewhere and not api_key:
        raise LocalsteerError(
            f"{elsewhere[0]} can be reached from other machines, and everybody there could use the model.",
            hint="Give --api-key (or LOCALSTEER_API_KEY), or listen on 127.0.0.1.",
        )
    if api_key is not None and not api_key.isascii():
        raise LocalsteerError("The API key can only hold ASCII characters.", hint="Take another one.")
    own = (*listening, socket.gethostname()) if elsewhere else listening
    return Access((*LOOPBACK, *own, *hosts), tuple(map(_origin, origins)), api_key or None)


def _origin(named: str) -> str:
    """A page, or a host, as browsers call it."""
    if named == "*":
        return named
    scheme, marked, host = named.lower().removesuffix("/").rpartition("://")
    if not host or any(character in host for character in "/?#@* "):
        raise LocalsteerError(
            f'--allow-origin "{named}" is no origin of a web page.', hint="Give one such as http://localhost:3000, or * for all."
        )
    return f"{scheme}{marked}{host}"


def _bind(host: str, port: int) -> socket.socket:
    """A socket with the address, before minutes go into loading a model."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # elsewhere it means that two may have the same address
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise LocalsteerError(
            f"Nothing can listen on {host}:{port}: {error.strerror}.", hint="Give another --port (0: any that is free)."
        ) from error
    return listening


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
