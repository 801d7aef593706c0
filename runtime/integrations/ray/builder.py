"""The application builder: arguments to a deployment."""

from ...errors import ZweaveError

try:
    from ray import serve
    from ray.serve import Application

    from ...options.server_options import server_settings
    from .arguments import Arguments
    from .replica import Replica
except ModuleNotFoundError as error:
    raise ZweaveError(
        f"serving under Ray needs the package {error.name}: pip install 'zweave[ray]'"
    ) from None

# What keeps a replica from starting is what it was told, or a moment's trouble on its machine.
_ATTEMPTS = 3


def app(arguments: Arguments) -> Application:
    """What `serve run zweave.integrations.ray:app NAME=VALUE ...` runs; ZweaveError for what cannot be served."""
    server_settings(arguments.options(), replicated=True)
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="zweave",
        ray_actor_options={"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "target_ongoing_requests": arguments.max_sequences,
        },
        # Those that run and as many that follow at once; further ones wait at Ray, for the first replica with room.
        max_ongoing_requests=2 * arguments.max_sequences,
        max_queued_requests=arguments.max_waiting,
        backpressure_config={"status_code": 429, "retry_after_s": 1.0},
        graceful_shutdown_timeout_s=arguments.drain_timeout,
        max_constructor_retry_count=_ATTEMPTS,
    )
    return deployment.bind(arguments)
