"""/v1/experts/NAME/z: how far an expert, or a LoRA, changes each matrix."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from ...adapters.lora import Lora
from ...checkpoint.module_name import layer_of, linear_of
from ...errors import shortened
from ...experts.expert import Expert
from ..errors import ApiError
from ..json_route import JsonRoute
from ..served import served

router = APIRouter(tags=["experts"], route_class=JsonRoute)


@router.get("/v1/experts/{name:path}/z")
def expert_z(name: str, http: HttpRequest) -> dict[str, Any]:
    """The mean of |z - 1| of each matrix, a row a layer; null where nothing is adapted.

    A LoRA has no z: of its matrices it is the Frobenius norm of what is added, scaling B A.
    """
    server = served(http)
    server.check_told(name)
    bank = server.engine.bank
    if name not in bank:
        server.ensure_now(name)
    if name not in bank:
        raise ApiError(404, f"there is no expert {shortened(name)}: GET /v1/experts lists them")
    config = server.engine.model.config
    matrices = list(dict.fromkeys(map(linear_of, config.adapted_shapes())))
    values: list[list[float | None]] = [[None] * len(matrices) for _ in range(config.num_layers)]
    entry = bank.registered(name)
    for module, distance in _distances(entry.read()).items():
        values[layer_of(module)][matrices.index(linear_of(module))] = distance
    return {"kind": entry.kind, "layers": config.num_layers, "matrices": matrices, "values": values}


def _distances(changes: Expert | Lora) -> dict[str, float]:
    if isinstance(changes, Lora):
        return {module: pair.norm for module, pair in changes.pairs.items()}
    return {module: float((z - 1).abs().mean()) for module, z in changes.z.items()}
