"""The one use case: a conversation with pictures goes in, an answer comes out as it grows."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

from trifocal.checkpoints import Checkpoint, OwnVision
from trifocal.conversation.history import Keep, Trimmed, keep_images, trim
from trifocal.conversation.templates import ChatTemplate, Piece
from trifocal.conversation.writable import Writable, writable
from trifocal.embedded import Embedded
from trifocal.engines import load_engine
from trifocal.engines.base import Engine, Named, State, Token, Tokenizer
from trifocal.errors import BadMessages, BadSampling, CheckpointError, PromptTooLong, UsageError
from trifocal.images import Image
from trifocal.messages import DEFAULT_MAX_TOKENS, Chunk, End, Message, Sampling, TokenLogprob, Tool
from trifocal.model.budget import Budget, budget_of
from trifocal.model.composer import Composer, Outlines
from trifocal.model.decoding import stream_text
from trifocal.model.explaining import Explanation, explanation_of
from trifocal.model.finding import Found, find
from trifocal.model.outline import Outline
from trifocal.model.settings import Settings
from trifocal.model.talking import Talking
from trifocal.placement import Part, Placed
from trifocal.prompt import Prompt, Scope
from trifocal.timing import Timings
from trifocal.vision import Gallery, Showing, View, Vision, open_vision
from trifocal.vision.elsewhere import open_elsewhere

__all__ = ["Asked", "Llava", "Preview", "Written", "load", "load_found", "load_vision", "put_together"]

LONGEST_EXPLAINED = 1024  # tokens of an answer


@dataclass(frozen=True, slots=True)
class Written:
    """What will be asked, outlined once for however many answers.

    ``ends`` are the template's strings that end an answer; ``left_out`` and ``notes`` tell what is missing and what was
    put otherwise; ``room`` bounds prompt and answer below the engine's context.
    """

    outline: Outline
    ends: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    room: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Preview:
    """What of a picture the model is shown: the squares that the tower gets, and how many rows become of them."""

    rows: int
    views: tuple[View, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the engine is asked, its pictures seen: for `Llava.tell`.

    ``facts`` are those of the answer's end that are known already, ``timings`` what was spent so far.
    """

    prompt: Prompt
    sampling: Sampling
    ends: tuple[str, ...]
    facts: End
    timings: Timings

    def positions(self, answers: int = 1) -> int:
        """How many positions the prompt and so many answers to it take at most."""
        return len(self.prompt) + answers * (self.sampling.max_tokens or 0)

    def again(self, seed: int | None) -> Asked:
        """The same for another answer, drawn from this seed; for it nothing is decoded or seen."""
        facts = replace(self.facts, cached=(True,) * len(self.facts.cached))
        return replace(self, sampling=replace(self.sampling, seed=seed), facts=facts, timings=Timings())


class Llava(Talking[Written, Asked]):
    """A checkpoint that sees: template, composer and engine put together.

    Three doors, each using the next: `stream` (or `complete`) takes a conversation, `generate`
    takes parts in prompt order, and `composer`, `gallery` and `engine` can be called by themselves. Who
    wants several answers to one conversation asks `write` once and `answer` as often. All may be called
    from many threads at once.
    """

    def __init__(
        self, checkpoint: Checkpoint, composer: Composer, engine: Engine, template: ChatTemplate, images: Keep = "all"
    ) -> None:
        self.checkpoint, self.composer, self.engine = checkpoint, composer, engine
        self.template, self.images = template, images

    @property
    def gallery(self) -> Gallery:
        """The vision, and what of its pictures is known."""
        return self.composer.gallery

    @property
    def name(self) -> str:
        """What it is called."""
        return self.checkpoint.name

    @property
    def family(self) -> str:
        """The family of models that it is of."""
        return self.checkpoint.family

    @property
    def context(self) -> int:
        """Positions of prompt and answer."""
        return self.engine.context

    @property
    def tokenizer(self) -> Tokenizer:
        """The language model's."""
        return self.engine.tokenizer

    @property
    def engine_name(self) -> str:
        """What the language engine is called."""
        return self.engine.name if isinstance(self.engine, Named) else type(self.engine).__name__.lower()

    def state(self) -> State:
        """How the language engine is now."""
        return self.engine.state()

    def outline(self, parts: Sequence[Piece]) -> Outline:
        """What parts in prompt order will take; no picture is looked at."""
        return self.composer.outline(parts)

    def preview(self, image: Image) -> Preview | None:
        """What the model is shown of a picture that is alone in its prompt; None where its vision can't tell.

        Raises:
            BadImage: a picture that this vision can't see at all.
        """
        vision = self.gallery.vision
        if not isinstance(vision, Showing) or isinstance(image, Embedded):
            return None
        (look,) = self.gallery.looks([image])
        return Preview(look.rows, tuple(vision.views(look)))

    def generate(
        self, parts: Sequence[Piece], sampling: Sampling = Sampling(), *, room: int | None = None
    ) -> Generator[Chunk, None, None]:
        """The continuation of parts in prompt order: no template, no stop strings but the caller's.

        Prompt and answer are held within ``room`` positions, where it is less than the engine's context.

        Raises:
            PromptTooLong: the prompt and one token don't fit.
        """
        return self.answer(self.raw(parts, room=room), sampling)

    def raw(self, parts: Sequence[Piece], *, room: int | None = None) -> Written:
        """Parts in prompt order, as they will be asked: no template, no stop strings but the caller's."""
        return Written(self.composer.outline(parts), room=room)

    def write(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
        tools: Sequence[Tool] = (),
        room: int | None = None,
    ) -> Written:
        """A conversation as `stream` asks it: outlined, and without what does not fit; no picture is looked at.

        Raises:
            BadMessages: the conversation can't be rendered.
        """
        template = template or self.template
        plain = writable(messages, template, tools)
        outlines = Outlines(self.composer, template, plain.tools)
        trimmed = self._trimmed(plain, max_tokens, images, outlines, room)
        return Written(outlines.of(trimmed.messages), template.stop, trimmed.notes, plain.notes, room)

    def prepare(self, written: Written, sampling: Sampling = Sampling(), *, scope: Scope = "") -> Asked:
        """What was written with its pictures seen, ready for the engine; raises as `Talking.answer`.

        Nothing that was seen or computed for it is found again for what is prepared in another ``scope``; None keeps
        nothing at all, for what is not asked a second time.
        """
        timings, outline = Timings(), written.outline
        if sampling.top_logprobs is not None and not self.engine.able.logprobs:
            raise BadSampling("top_logprobs", "this engine can't tell log-probabilities")
        timings.add("decode", sum(look.image.seconds for look in outline.looks))
        context = self._context(written.room)
        _check_room(outline, 1, context)
        cached = tuple(self.gallery.knows(look, scope=scope) for look in outline.looks)
        prompt = self.composer.seen(outline, timings, scope=scope)
        limit, cut = _bounded(sampling.max_tokens, context - len(prompt))
        facts = End(
            finish="stop",
            prompt_tokens=len(prompt),
            image_tokens=prompt.image_positions,
            completion_tokens=0,
            positions=tuple(look.rows for look in outline.looks),
            cached=cached,
            left_out=written.left_out,
            notes=(*written.notes, *cut),
        )
        return Asked(prompt, replace(sampling, max_tokens=limit), written.ends, facts, timings)

    def tell(self, asked: Asked) -> Generator[Chunk, None, None]:
        """The answer to what was prepared; nothing but the engine works for it."""
        return self._answer(asked.prompt, asked.sampling, asked.ends, asked.facts, asked.timings)

    def count(
        self,
        messages: Sequence[Message],
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
        tools: Sequence[Tool] = (),
    ) -> int:
        """How many positions the whole conversation would take; no picture is looked at."""
        template = template or self.template
        plain = writable(messages, template, tools)
        chosen, _ = keep_images(plain.messages, self.images if images is None else images)
        return len(self.composer.outline(template.render(chosen, plain.tools)))

    def budget(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
    ) -> Budget:
        """Where the context's positions go, what is left out and what would be next; no picture is looked at.

        Raises:
            BadMessages: the conversation can't be rendered.
        """
        template = template or self.template
        plain = writable(messages, template)
        outlines = Outlines(self.composer, template, plain.tools)
        trimmed = self._trimmed(plain, max_tokens, images, outlines)
        return budget_of(plain.messages, trimmed, outlines, self.engine.context, self._wanted(max_tokens))

    def explain(
        self,
        messages: Sequence[Message],
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
        max_tokens: int | None = None,
        scope: Scope = "",
    ) -> Explanation:
        """Where the language model looked for each word of an answer, the last message of the conversation.

        Which pictures and turns stay is decided as by `stream` with the same options; for ``scope`` see `prepare`.

        Raises:
            UsageError: this engine or this vision can't tell; `explains_not` says why.
            BadMessages: the last message is no answer.
            PromptTooLong: conversation and answer don't fit.
        """
        if self.explains_not:
            raise UsageError(self.explains_not)
        if not messages or messages[-1].role != "assistant" or not messages[-1].text.strip():
            raise BadMessages("the last message must be the assistant's answer: its words are what is explained")
        answer = messages[-1].text
        ids = self.engine.tokenizer.encode(answer, start=False)
        if len(ids) > LONGEST_EXPLAINED:
            raise UsageError(f"the answer has {len(ids)} tokens; up to {LONGEST_EXPLAINED} can be explained")
        outline = self.write(messages[:-1], max_tokens, images=images, template=template).outline
        if any(isinstance(look.image, Embedded) for look in outline.looks):
            raise UsageError("where it looked can't be told of a picture that came as embeddings")
        _check_room(outline, len(ids), self.engine.context)
        engine, vision = self.engine, self.gallery.vision
        assert isinstance(vision, Showing)
        prompt = self.composer.seen(outline, scope=scope)
        grids = [vision.grids(look) for look in outline.looks]
        return explanation_of(answer, ids, engine.attention(prompt, ids), prompt, grids, engine.tokenizer)

    @property
    def explains_not(self) -> str | None:
        """Why `explain` can't be asked, as a sentence; None where it can."""
        if not self.engine.able.explains:
            return f"The engine {self.engine_name} can't tell where it looks; the engines native and transformers can."
        if not isinstance(self.gallery.vision, Showing):
            return "This model's vision can't tell which of its rows looks where."
        return None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that are loaded, as far as they can tell where they are."""
        return tuple(
            part for half in (self.gallery.vision, self.engine) if isinstance(half, Placed) for part in half.parts
        )

    def close(self) -> None:
        """Frees the engine."""
        self.engine.close()

    def _answer(
        self, prompt: Prompt, sampling: Sampling, ends: tuple[str, ...], facts: End, timings: Timings
    ) -> Generator[Chunk, None, None]:
        started, first, told, said = time.perf_counter(), None, 0, ""
        scored: list[TokenLogprob] = []
        guessed: list[int] = []
        ids = self._ids(prompt, sampling, scored, guessed)
        # an answer that is held to a schema ends where its JSON does: a stop string may stand inside of it
        stops = sampling.stop if sampling.schema is not None else tuple(dict.fromkeys((*sampling.stop, *ends)))
        with closing(stream_text(ids, self.engine.tokenizer, replace(sampling, stop=stops))) as pieces:
            for piece in pieces:
                if first is None:
                    first = time.perf_counter()
                    timings.add("prefill", first - started)
                logprobs, told = tuple(scored[: piece.told - told]), piece.told
                del scored[: len(logprobs)]
                said += piece.text
                if piece.finish is None:
                    yield Chunk(piece.text, None, logprobs, facts.prompt_tokens)
                else:
                    timings.add("generate", time.perf_counter() - first)
                    end = replace(
                        facts,
                        finish=piece.finish if sampling.schema is None else _whole(said),
                        stopped_by=piece.stop if piece.stop in sampling.stop else None,
                        completion_tokens=piece.tokens,
                        guessed=sum(at < piece.tokens for at in guessed),
                        timings=dict(timings),
                    )
                    yield Chunk(piece.text, end, logprobs, facts.prompt_tokens)

    def _ids(
        self, prompt: Prompt, sampling: Sampling, scored: list[TokenLogprob], guessed: list[int]
    ) -> Generator[int, None, None]:
        """The answer's ids; what is known of their probabilities is added to ``scored`` when it is asked for.

        ``guessed`` gets the places of those that came as they were guessed.
        """
        tokens = self.engine.stream(prompt, sampling)
        return _noting(tokens, self.engine.tokenizer, None if sampling.top_logprobs is None else scored, guessed)

    def _trimmed(
        self,
        plain: Writable,
        max_tokens: int | None,
        images: Keep | None,
        outlines: Outlines,
        room: int | None = None,
    ) -> Trimmed:
        """What stays of a conversation, so that it and its answer fit."""
        free = self._context(room) - self._wanted(max_tokens, room)
        keep = self.images if images is None else images
        return trim(plain.messages, keep, lambda turns: len(outlines.of(turns)) <= free)

    def _context(self, room: int | None) -> int:
        """How many positions prompt and answer may take together."""
        return min(room or self.engine.context, self.engine.context)

    def _wanted(self, max_tokens: int | None, room: int | None = None) -> int:
        """How many positions are kept free for the answer.

        A bound over half of the context is a client's habit: past turns are worth more than room that is never used.
        """
        context = self._context(room)
        if max_tokens is not None and max_tokens <= context // 2:
            return max_tokens
        return min(DEFAULT_MAX_TOKENS, max(context // 4, 1))


def _check_room(outline: Outline, wanted: int, context: int) -> None:
    """Refuses what can't fit before any picture is looked at."""
    if len(outline) + wanted > context:
        raise PromptTooLong(len(outline), outline.image_positions, wanted, context)


def _bounded(asked: int | None, free: int) -> tuple[int, tuple[str, ...]]:
    """How long an answer may be, and what is to be told of it."""
    if asked is not None and asked > free:
        return free, (f"the answer may have {free} tokens, not the {asked} that were asked for: no more are free",)
    return min(asked or DEFAULT_MAX_TOKENS, free), ()


def _whole(text: str) -> Literal["stop", "length"]:
    """Whether held JSON ended by itself or was cut."""
    try:
        json.loads(text)
    except ValueError:
        return "length"
    return "stop"


def _noting(
    tokens: Generator[Token, None, None],
    tokenizer: Tokenizer,
    scored: list[TokenLogprob] | None,
    guessed: list[int],
) -> Generator[int, None, None]:
    """The ids of tokens, whose log-probabilities are added to ``scored``, and places of guesses to ``guessed``."""
    with closing(tokens):
        for at, token in enumerate(tokens):
            if token.guessed:
                guessed.append(at)
            if scored is not None:
                top = tuple((tokenizer.decode([other]), logprob) for other, logprob in token.top)
                scored.append(TokenLogprob(tokenizer.decode([token.id]), token.logprob, top))
            yield token.id


def load(settings: Settings | None = None, **values: Any) -> Llava:
    """Loads a checkpoint's three parts, each onto its own placement.

    ``load()`` is the bundled model; ``load("thimble")`` is not needed, ``load(checkpoint=FOLDER)``
    names another, and every field of `Settings` may be given by name.

    Raises:
        CheckpointError: files missing, damaged, unsafe, or parts that don't belong together.
        UnknownName: a setting, engine, template or checkpoint that is not known.
        MissingExtra: an engine whose optional dependency is not installed.
        OutOfMemory: a device had no room for its part.
        VisionError: a vision of another machine that can't be asked.
    """
    settings = (settings or Settings()).with_values(values)
    return load_found(settings, find(settings))


def load_found(settings: Settings, found: Found) -> Llava:
    """What these settings name and was found already; raises as `load`."""
    engine = load_engine(found.recipe)
    return put_together(settings, found, engine, load_vision(settings, found.checkpoint))


def load_vision(settings: Settings, checkpoint: Checkpoint) -> Vision:
    """What sees the checkpoint's pictures, here or where `Settings.vision` says; raises as `load`."""
    if settings.vision is not None and settings.is_elsewhere:
        return open_elsewhere(settings.vision)
    return open_vision(checkpoint, settings.tower, settings.projector, allow_pickle=settings.allow_pickle)


def put_together(settings: Settings, found: Found, engine: Engine, vision: Vision) -> Llava:
    """A model of its loaded halves; the engine is closed where they don't belong together.

    Raises:
        CheckpointError: they belong to different models.
    """
    checkpoint = found.checkpoint
    try:
        _check_belong(checkpoint, engine, vision)
    except CheckpointError:
        engine.close()
        raise
    composer = Composer(
        engine.tokenizer,
        Gallery(vision, settings.cache_bytes, takes_rows=isinstance(checkpoint.vision, OwnVision)),
        image_start=checkpoint.image_start,
        image_end=checkpoint.image_end,
        strip_around_images=checkpoint.strip_around_images,
    )
    return Llava(checkpoint, composer, engine, found.template, settings.images)


def _check_belong(checkpoint: Checkpoint, engine: Engine, vision: Vision) -> None:
    if vision.hidden != engine.hidden:
        raise CheckpointError(
            f"the projector makes rows of {vision.hidden}, the language model takes rows of {engine.hidden}: "
            "they belong to different models"
        )
    for name in filter(None, (checkpoint.image_start, checkpoint.image_end)):
        if engine.tokenizer.token(name) is None:
            raise CheckpointError(
                f"{checkpoint.language.source}: its tokenizer has no {name} with a row in the embedding, which this "
                "checkpoint puts around pictures (mm_use_im_start_end in its config.json): take the tokenizer's files "
                "and the embedding that it was released with, or set mm_use_im_start_end to false"
            )
