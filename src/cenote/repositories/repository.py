"""What a repository is: one kind of entity, found by its id (specification 4.1)."""

from typing import Protocol, TypeVar

from cenote.model.page import Page

Entity = TypeVar("Entity")
Id_contra = TypeVar("Id_contra", contravariant=True)


class Repository(Protocol[Entity, Id_contra]):
    """The verbs that agents, sessions and facts share."""

    async def save(self, entity: Entity, /) -> Entity:
        """Create or replace; the entity as it stands now."""
        ...

    async def find(self, entity_id: Id_contra, /) -> Entity:
        """The entity. Raises NotFoundError."""
        ...

    async def update(self, entity: Entity, /) -> Entity:
        """Replace what exists. Raises NotFoundError; ConflictError when it has changed since it was read."""
        ...

    async def delete(self, entity_id: Id_contra, /) -> None:
        """Remove it; removing an absent one is fine."""
        ...

    async def list(self, *, limit: int = 100, cursor: str | None = None) -> Page[Entity]:
        """A page in a stable order. Raises NotFoundError for a cursor that is none."""
        ...
