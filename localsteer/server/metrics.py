"""What the server has done, for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localsteer.server.engine import Engine


class Metrics(Collector):
    """Reads the engine's counters when it is asked.

    Args:
        engine: the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self._engine = engine
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Everything as it stands."""
        counters = self._engine.counters
        reasons = {(reason,): count for reason, count in dict(counters.answers).items()}
        for name, text, labels, counts in (
            ("requests", "HTTP requests.", ["path", "status"], self.requests),
            ("answers", "Answers that came to an end.", ["reason"], reasons),
            ("policy_decisions", "Policy decisions.", ["rule", "action"], dict(counters.decisions)),
        ):
            family = CounterMetricFamily(f"localsteer_{name}", text, labels=labels)
            for key, count in sorted(counts.items()):
                family.add_metric(key, count)
            yield family
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens that were computed.", counters.prompt_tokens),
            ("prompt_tokens_reused", "Prompt tokens that were in the KV cache.", counters.reused_tokens),
            ("generated_tokens", "Tokens drawn.", counters.generated_tokens),
            ("batches", "Decodes of the running batch.", counters.steps),
        ):
            yield CounterMetricFamily(f"localsteer_{name}", text, value=value)
        for name, text, value in (
            ("answers_running", "Answers in the batch.", self._engine.running),
            ("answers_waiting", "Answers that wait for a place.", self._engine.waiting),
            ("kv_tokens", "Tokens in the KV cache, kept ones included.", self._engine.kept_tokens),
        ):
            yield GaugeMetricFamily(f"localsteer_{name}", text, value=value)


class CountRequests:
    """Counts every request by its route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route, not the path: names that anybody makes up must not become metrics.
                path = getattr(scope.get("route"), "path", "other")
                self._metrics.requests[path, str(message["status"])] += 1
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
