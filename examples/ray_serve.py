"""phi3ov's OpenAI-compatible server as a Ray Serve deployment of several replicas.

pip install "phi3ov[server]" "ray[serve]"
serve run --app-dir examples ray_serve:build model=/models/phi3-int4 replicas=2 cores=8
curl localhost:8000/v1/chat/completions -H 'x-session-id: 7' \
    --json '{"messages": [{"role": "user", "content": "Hello"}]}'
"""

from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.schema import LoggingConfig

import phi3ov
from phi3ov.server import create_app

BY_SESSION = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def build(arguments: dict[str, str]) -> serve.Application:
    cores = int(arguments["cores"])
    # Replicas on one node would otherwise be pinned to the same cores.
    config = phi3ov.RuntimeConfig(threads=cores, properties={"ENABLE_CPU_PINNING": "NO"})

    def make_app() -> Any:  # runs in each replica
        return create_app(phi3ov.load_model(arguments["model"], engine="worker", config=config))

    @serve.deployment(
        num_replicas=int(arguments["replicas"]),
        ray_actor_options={"num_cpus": cores},
        max_ongoing_requests=64,  # 32 run together; Ray's default, 5, would starve them
        graceful_shutdown_timeout_s=60,
        # Requests with the same x-session-id go to the replica that has their prefix.
        request_router_config=RequestRouterConfig(request_router_class=BY_SESSION),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    @serve.ingress(make_app)
    class Phi3: ...

    return Phi3.bind()
