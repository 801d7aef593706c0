"""/v1/experts/NAME/z: how far an expert changes each matrix."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from ...checkpoint.module_name import layer_of, linear_of
from ...errors import shortened
from ...experts.expert import Expert
from ..errors import ApiError
from ..json_route import JsonRoute
from ..served import served

router = APIRouter(tags=["experts"], route_class=JsonRoute)


@router.get("/v1/experts/{name:path}/z")
def expert_z(name: str, http: HttpRequest) -> dict[str, Any]:
    """The mean of |z - 1| of each matrix, a row a layer; null where the expert adapts nothing."""
    server = served(http)
    bank = server.engine.bank
    if name not in bank:
        server.ensure_now(name)
    if name not in bank:
        raise ApiError(404, f"there is no expert {shortened(name)}: GET /v1/experts lists them")
    config = server.engine.model.config
    matrices = list(dict.fromkeys(map(linear_of, config.adapted_shapes())))
    values: list[list[float | None]] = [[None] * len(matrices) for _ in range(config.num_layers)]
    for module, distance in _distances(bank.expert(name)).items():
        values[layer_of(module)][matrices.index(linear_of(module))] = distance
    return {"layers": config.num_layers, "matrices": matrices, "values": values}


def _distances(expert: Expert) -> dict[str, float]:
    return {module: float((z - 1).abs().mean()) for module, z in expert.z.items()}
