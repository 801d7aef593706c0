"""What the endpoints share: the engine, who may ask, and how much is in work."""

import asyncio
import os
import time

from fastapi import Request as HttpRequest

from ..describe.description import Description
from ..engine.async_engine import AsyncEngine
from ..engine.engine import Engine
from ..errors import ZweaveError, shortened
from ..experts.mixture import DESCRIBED, ExpertChoice, Mixture
from ..experts.resolved_mixture import Entry
from ..request import Request
from .answers.admission import Admission
from .answers.running import Running
from .auth import Keys
from .errors import ApiError
from .experts.expert_choice import expert_choice
from .experts.expert_directory import ExpertDirectory
from .experts.uploads import Uploads
from .held_bodies import HeldBodies
from .metrics import Metrics
from .protocol.expert_field import ExpertField
from .protocol.generation import GenerationBody
from .settings import ServerSettings
from .to_requests import Choices

# Before a description, in place of a model's name.
DESCRIBE = "describe:"


class Served:
    """An engine as the endpoints see it.

    serving: the engine in its thread, while the server runs.
    started: seconds since the epoch.
    """

    serving: AsyncEngine

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self.engine, self.settings = engine, settings
        self.keys = Keys(settings)
        self.admission = Admission(settings.max_waiting)
        self.bodies = HeldBodies(settings.max_bodies)
        self.running = Running()
        self.metrics = Metrics(engine, self.admission)
        self.directory = None if settings.experts is None else ExpertDirectory(engine, settings.experts)
        self.uploads = Uploads(engine, settings.max_uploads)
        self.base_names = ("base", settings.model_name)
        self.started = int(time.time())
        self._folders = [engine.tokenizer.directory]
        if self.directory is not None and settings.experts is not None:
            self._folders += [settings.experts, self.directory.path]

    def told(self, message: str) -> str:
        """What clients may read of a message: files by their names, not where they lie on this machine."""
        for folder in self._folders:
            message = message.replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)
        return message

    async def choose(self, model: str, expert: ExpertField | None = None) -> ExpertChoice | Description:
        """The expert that a body asks for, loaded if it is in the directory; ApiError 404 for none.

        One that is described is made when the request is admitted.
        """
        if model.startswith(DESCRIBE) and expert is None:
            return self._description(model.removeprefix(DESCRIBE))
        choice = expert_choice(model, expert, self.base_names, self.settings.aliases)
        if choice == "auto" and self.engine.dispatcher is None:
            raise ApiError(404, "this server has no dispatcher for 'auto': start it with --dispatcher FILE")
        mixture = None if choice == "auto" else Mixture.parse(choice)
        self.check_told(*(mixture.names if mixture else ()))
        await self.find(mixture)
        return choice

    async def choices(self, body: GenerationBody) -> Choices:
        """The expert and the fallback that a body asks for; ApiError as `choose` raises it."""
        if body.template is not None:
            self.check_told(body.template)
        fallback = None if body.fallback is None else await self.choose(body.fallback)
        return Choices(await self.choose(body.model, body.expert), fallback)

    def entries(self) -> list[Entry]:
        """The loaded experts; what clients describe is their own."""
        return [entry for entry in self.engine.bank.entries() if not entry.name.startswith(DESCRIBED)]

    def check_told(self, *names: str) -> None:
        """Raises ApiError 404 for the name of a described expert, whether there is one or not: no client gives it."""
        for name in names:
            if name.startswith(DESCRIBED):
                raise ApiError(404, f"there is no expert {shortened(name)}: GET /v1/experts lists them")

    def _description(self, text: str) -> Description:
        if not self.engine.has_generator:
            raise ApiError(
                404, "this server makes no experts of descriptions: start it with --generator FILE"
            )
        return Description(text)

    def registered(self, mixture: Mixture | None) -> list[Entry]:
        """The experts of a mixture as they are loaded now; none if one is not."""
        try:
            return [self.engine.bank.registered(name) for name in (mixture.names if mixture else ())]
        except ZweaveError:
            return []

    async def find(self, mixture: Mixture | None) -> list[Entry]:
        """The experts of a mixture, loaded if they are in the directory; ApiError as `choose` raises it."""
        names = mixture.names if mixture else ()
        while True:
            await self.ensure(*names)
            try:
                self.engine.bank.look_up(mixture)
            except ZweaveError as error:
                unknown = [name for name in names if name not in self.engine.bank]
                # One that was forgotten just now is loaded again.
                if not (unknown and all(map(self._is_in_directory, unknown))):
                    raise ApiError(404 if unknown else 400, str(error)) from None
            else:
                return self.registered(mixture)

    def _is_in_directory(self, name: str) -> bool:
        return self.directory is not None and self.directory.source(name) is not None

    async def ensure(self, *names: str) -> None:
        """Loads those experts that are in the directory and not loaded."""
        for name in names if self.directory is not None else ():
            await asyncio.to_thread(self.ensure_now, name)

    def ensure_now(self, name: str) -> None:
        """The same of one expert, at once; not for the event loop's thread."""
        if self.directory is not None and self.directory.ensure(name):
            self.uploads.note_replaced(name)


def served(http: HttpRequest) -> Served:
    """That of the app which got a request."""
    found: Served = http.app.state.served
    return found


def kind_of(request: Request) -> str:
    """How a request names its expert, for the metrics."""
    if request.is_auto:
        return "auto"
    if request.expert is None:
        return "base"
    return "expert" if isinstance(request.expert, str | Description) else "mixture"
