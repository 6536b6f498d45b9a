"""State: what an actor keeps from one event to the next, of each key or of all that it handles.

class Totals(State):
delayed: int = 0
minutes: float = 0.0

class Statistics(Actor, key="carrier", state=Totals):
@handles
async def delayed(self, event: Delayed, ctx: Context) -> None:
ctx.state.delayed += 1
"""

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

import msgspec

from understudy.actors.errors import DeclarationError, StateError
from understudy.actors.keywords import check_keywords
from understudy.actors.names import check_integer

# The server takes messages of 1 MiB unless told otherwise, and outputs are stored beside the value.
MAX_BYTES = 256 * 1024
_Meta = TypeVar("_Meta", bound="StateMeta")


class StateMeta(msgspec.StructMeta):
    """Makes state classes: takes the class keywords that msgspec's own metaclass would refuse."""

    __understudy_version__: int
    __understudy_max_bytes__: int

    def __new__(  # noqa: D102, PYI019 - Self is refused in a metaclass
        mcs: type[_Meta],
        class_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        version: int = 1,
        max_bytes: int = MAX_BYTES,
        **unknown: object,
    ) -> _Meta:
        where = f"state {class_name}"
        # State itself says kw_only, for type checkers, which know it from Struct.
        if bases != (msgspec.Struct,):
            check_keywords(unknown, ("version", "max_bytes"), where)
        cls = super().__new__(mcs, class_name, bases, namespace, kw_only=True)
        cls.__understudy_version__ = check_integer(version, f"{where}: version", minimum=1)
        cls.__understudy_max_bytes__ = check_integer(max_bytes, f"{where}: max_bytes", minimum=1)
        defaults = cls.__struct_defaults__
        bare = len(cls.__struct_fields__) - len(defaults)
        for field, default in zip(cls.__struct_fields__, (msgspec.NODEFAULT,) * bare + defaults, strict=True):
            if default is msgspec.NODEFAULT:
                raise DeclarationError(
                    f"{where}: the field {field!r} has no default; every state begins with its defaults, so "
                    f"give it one"
                )
        if version > 1 and not any("upgrade" in vars(base) for base in cls.__mro__[: -len(State.__mro__)]):
            raise DeclarationError(
                f"{where}: version is {version}, but nothing makes it of older ones; write a class method "
                f"upgrade(cls, version, data)"
            )
        return cls


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class State(msgspec.Struct, metaclass=StateMeta, kw_only=True):
    """The base of states: fields with defaults, which a handler reads and assigns in `ctx.state`.

    Class keywords: `version` (1), to be raised when stored states can't be read as they are any more, and
    `max_bytes` (256 KiB), how large one state may be when it is stored. A field with a default may be added,
    and one removed, without a new version.
    """

    __understudy_version__: ClassVar[int]
    __understudy_max_bytes__: ClassVar[int]

    @classmethod
    def upgrade(cls, version: int, data: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields of this version, made of those that an older version has stored.

        Called when a state of an older version is loaded, whichever it is; a class with a `version` above 1
        has one of its own. If it raises, the delivery waits and is tried again; nothing is lost. It may be
        called more than once for the same data: what it returns is stored with the next event.

        Raises:
            StateError: the class has none of its own.
        """
        raise StateError(f"{cls.__qualname__} can't be made of version {version} ({len(data)} fields)")

    if TYPE_CHECKING:

        def __init_subclass__(cls, *, version: int = ..., max_bytes: int = ...) -> None: ...


class StateCodec:
    """Encodes and decodes the states of one class; DeclarationError if msgspec can't."""

    def __init__(self, type_: type[State], where: str) -> None:
        self.type = type_
        self.version = type_.__understudy_version__
        self.max_bytes = type_.__understudy_max_bytes__
        self._name = type_.__qualname__
        self._encode = msgspec.msgpack.Encoder().encode
        try:
            self._decode = msgspec.msgpack.Decoder(type_).decode
        except (TypeError, NameError) as error:
            raise DeclarationError(
                f"{where}: {self._name} has a field that can't be stored: {error}"
            ) from error

    def encode(self, value: State) -> tuple[bytes, State]:
        """The bytes of a state, and what they will be read as; StateError if it can't be stored.

        Reading them at once shows what would keep the next event from being handled, such as text in a
        number's place, and leaves nothing that the handler might change when it has returned.
        """
        try:
            data = self._encode(value)
            copy = self._decode(data)
        except Exception as error:
            raise StateError(f"{self._name} can't be stored: {error}") from error
        if len(data) > self.max_bytes:
            raise StateError(
                f"{self._name} takes {len(data)} bytes, its max_bytes is {self.max_bytes}; keep less in it, "
                f"spread it over more keys, or raise max_bytes, within the server's max_payload"
            )
        return data, copy

    def decode(self, data: bytes | memoryview, version: int) -> State:
        """The state that some version has stored; StateError if it can't be read."""
        if version > self.version:
            raise StateError(
                f"{self._name} was stored by its version {version}, and this one is {self.version}; deploy "
                f"version {version} again"
            )
        try:
            if version < self.version:
                data = self._encode(self.type.upgrade(version, msgspec.msgpack.decode(data)))
            return self._decode(data)
        # An upgrade may raise anything.
        except Exception as error:
            raise StateError(
                f"{self._name}, stored by version {version}, can't be read by version {self.version}: "
                f"{type(error).__name__}: {error}"
            ) from error
