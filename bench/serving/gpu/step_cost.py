"""What a decode step on a GPU is predicted to take: bytes over rates, and a fixed cost a launch.

    seconds = weights / read + keys and values / attention + products * launch + small kernels * small + rest

Up to some 128 rows reading binds, so that operations are left out.
"""

from dataclasses import dataclass

from zweave.checkpoint import ModelConfig
from zweave.kernels import LinearMode
from zweave.planner.planner import HOSTED_DELTA_SHARE

from .decode_step import StepShape

# Of a layer: two norms, rope and store, attention and the sum of its splits.
_SMALL_KERNELS = 5
_PRODUCTS = {LinearMode.DENSE: 4, LinearMode.DELTA: 8, LinearMode.FACTORED: 8}


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """Rates of a device, fitted to single products in graphs there, and costs of launches.

    read, attention: bytes a second of weights, and of keys and values
    launch: seconds that a product takes besides reading
    dependent_launch: the same where it is launched before the kernel ahead of it ends
    small: seconds of a kernel that reads little
    rest: seconds of a step's embedding and sampling
    ideal_rest: the same of a server without a kernel for sampling
    """

    name: str
    read: float
    attention: float
    launch: float = 5.7e-6
    dependent_launch: float = 2.5e-6
    small: float = 2.5e-6
    rest: float = 0.08e-3
    ideal_rest: float = 0.15e-3


DEVICES = (DeviceRates("H200", 4.35e12, 3.9e12), DeviceRates("H100", 2.92e12, 2.7e12))


def rates_of(device_name: str | None) -> DeviceRates:
    """The rates of a device; of one that is not known those of an H200, by whose name they go."""
    return next((device for device in DEVICES if device.name in (device_name or "")), DEVICES[0])


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step reads and launches.

    weights, cache: bytes of weights with the experts' rows, and of keys and values
    products, small: kernels
    is_ideal: whether the step is that of the ideal server
    """

    weights: float
    cache: float
    products: int
    small: int
    is_ideal: bool

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        mode: LinearMode,
        shape: StepShape,
        itemsize: int,
        is_ideal: bool = False,
    ) -> "StepCost":
        """Of a step with weights and cache of so many bytes a number."""
        elements, columns = config.vocab_size * config.hidden_size, 0
        for M, N in config.adapted_shapes().values():
            rank = min(M, N)
            if mode == LinearMode.DELTA:
                rank = max(1, rank // HOSTED_DELTA_SHARE)
            if mode != LinearMode.FACTORED:
                elements += M * N
            if mode != LinearMode.DENSE:
                elements += rank * (M + N)
                columns += rank
        position = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        return cls(
            weights=elements * itemsize + 4.0 * shape.experts * columns,
            cache=float(shape.rows * shape.context * position * itemsize),
            products=_PRODUCTS[mode] * config.num_layers + 1,
            small=(_SMALL_KERNELS + is_ideal) * config.num_layers,  # the ideal's gate is a kernel of its own
            is_ideal=is_ideal,
        )

    @property
    def moved(self) -> float:
        """Bytes that must move."""
        return self.weights + self.cache

    def seconds(self, rates: DeviceRates, dependent: bool = True) -> float:
        """Predicted.

        dependent: whether our kernels are launched as dependent ones; the ideal's are not
        """
        launch = rates.dependent_launch if dependent and not self.is_ideal else rates.launch
        fixed = self.products * launch + self.small * rates.small
        rest = rates.ideal_rest if self.is_ideal else rates.rest
        return self.weights / rates.read + self.cache / rates.attention + fixed + rest
