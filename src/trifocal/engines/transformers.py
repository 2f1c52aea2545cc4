"""The engine over transformers' language models: our own loop, their classes as the reference."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trifocal.engines import int4 as packing
from trifocal.engines.base import Abilities, Language, State, Token
from trifocal.engines.grammar import Constraint, Grammars
from trifocal.engines.prefixes import Prefixes, position_keys
from trifocal.engines.sampler import Drawing, pick
from trifocal.engines.tokenizer import FileTokenizer
from trifocal.errors import CheckpointError, EngineError, OutOfMemory, PromptTooLong
from trifocal.files import read_object
from trifocal.messages import Sampling
from trifocal.placement import Part, Placement
from trifocal.prompt import ImageSpan, Prompt
from trifocal.weights.packed import Located

__all__ = ["Transformers", "load"]

HELD = 256 << 20  # bytes of attention weights that are looked at together
HEAD = "lm_head.weight"
_TABLES = ("model.embed_tokens.weight", "transformer.wte.weight")
_BLOCK = re.compile(r"(?:model\.layers|transformer\.blocks)\.(\d+)\.")
# kinds of layers whose state is keys and values of the positions: what a prefix of a prompt can be cut out of
_KEYS_AND_VALUES = {"full_attention", "sliding_attention", "chunked_attention"}
# how it is packed and kept is the loader's affair; code that a repository brings along is nobody's
_NOT_ITS_OWN = ("model_type", "quantization_config", "torch_dtype", "auto_map")
LARGE = 4 << 30  # bytes of a dense model from which on four-bit layers stay packed by themselves

log = logging.getLogger("trifocal")


class Transformers:
    """A causal language model of transformers, continued from spliced embeddings.

    Many threads may call it: each request has its own key-value cache, and they take turns step by
    step. The caches of the latest prompts stay, up to ``prefix_cache`` bytes, so that the next turn
    of a conversation runs only over what is new.
    """

    able = Abilities(logprobs=True, grammar=True, explains=True, sees=("causal", "images", "prompt"))

    def __init__(
        self,
        model: Any,
        tokenizer: FileTokenizer,
        *,
        context: int,
        end_ids: frozenset[int],
        prefix_cache: int,
        attention: str = "causal",
    ) -> None:
        self.tokenizer, self.context = tokenizer, context
        self.hidden = int(model.get_input_embeddings().weight.shape[1])
        self._model: Any = model
        self._end_ids, self._attention = end_ids, attention
        self._turn = threading.Lock()
        self._prefixes: Prefixes[Any] = Prefixes(prefix_cache, _branched)
        self._grammars: Grammars | None = None
        self._preparing = threading.Lock()

    @property
    def model(self) -> Any:
        """The transformers model itself.

        Raises:
            EngineError: the engine is closed.
        """
        if self._model is None:
            raise EngineError("the engine is closed")
        return self._model

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[Token, None, None]:
        """The answer's tokens; see `trifocal.engines.base.Engine.stream`."""
        if not len(prompt):
            raise EngineError("the prompt is empty: there is nothing to continue")
        if len(prompt) >= self.context:
            raise PromptTooLong(len(prompt), prompt.image_positions, 1, self.context)
        self.model  # noqa: B018  (says that a closed engine is closed before the first step)
        return self._tokens(prompt, sampling, self._constraint(sampling))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embedding rows ``[n, hidden]`` of ids ``[n]``, on the model's device."""
        table = self.model.get_input_embeddings()
        rows: torch.Tensor = table(ids.to(table.weight.device))
        return rows

    @torch.inference_mode()
    def attention(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor:
        """Where it looked while it chose each id; see `trifocal.engines.base.Engine.attention`.

        The answer is run once more behind the prompt, whose key-value rows are those of the prefix cache.
        """
        if not len(prompt) or not ids:
            raise EngineError("there is no prompt or no answer to look at")
        if len(prompt) + len(ids) > self.context:
            raise PromptTooLong(len(prompt), prompt.image_positions, len(ids), self.context)
        with self._guarded("the answer"):
            cache, done = self._start(position_keys(prompt), branch=True)
            rows = prompt.splice(self.embed)[done:]  # [positions not in the cache, hidden]
            if len(rows) > 1:
                self._forward(cache, inputs_embeds=rows[None], **self._masks(prompt, done))
                cache.crop(-1)  # its last position is asked below
            asked = torch.cat([rows[-1:], self.embed(torch.tensor(ids[:-1], dtype=torch.long))])  # [ids, hidden]
            config = self.model.config
            row = config.num_hidden_layers * config.num_attention_heads * (len(prompt) + len(ids)) * rows.element_size()
            step = max(1, HELD // row)
            parts = [self._looked(cache, asked[at : at + step], len(prompt)) for at in range(0, len(asked), step)]
        return torch.cat(parts)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The language model, as it is loaded."""
        config, table = self.model.config, self.model.get_input_embeddings().weight
        what = f"{config.model_type}, width {self.hidden}, {config.num_hidden_layers} blocks"
        size = _size(self.model)
        return (Part("language", what, str(table.device), str(table.dtype).removeprefix("torch."), size),)

    def state(self) -> State:
        """Ready until it is closed; requests take turns, so none is counted."""
        return State() if self._model is not None else State("failed", reason="the engine is closed")

    def close(self) -> None:
        """Frees the model and all caches."""
        self._model = None
        self._prefixes.clear()

    # inference_mode as a decorator wraps every step of the generator; as a with-block inside it would
    # stay switched on in the caller between two steps
    @torch.inference_mode()
    def _tokens(
        self, prompt: Prompt, sampling: Sampling, constraint: Constraint | None
    ) -> Generator[Token, None, None]:
        keys = position_keys(prompt)
        drawing = Drawing(sampling, prompt.token_ids, self._end_ids, constraint)
        left = min(sampling.max_tokens or self.context, self.context - len(prompt))
        with self._guarded("the prompt"):
            cache, done = self._start(keys)
        sound = False  # a run that broke off has left rows in some of the layers: nobody may go on from there
        try:
            with self._guarded("the prompt"):
                rows = prompt.splice(self.embed)[done:]  # [positions not in the cache, hidden]
                logits = self._forward(cache, inputs_embeds=rows[None], **self._masks(prompt, done))
            while True:
                [token] = pick(logits[None], [drawing])
                if isinstance(token, EngineError):
                    raise token
                sound = True
                if token.id in self._end_ids:
                    return
                yield token
                left -= 1
                if not left:
                    return
                sound = False
                with self._guarded("the answer"):
                    logits = self._forward(cache, input_ids=torch.tensor([[token.id]], device=self.model.device))
                keys.append(token.id)
        finally:
            if sound and self._model is not None and self._attention != "prompt":
                self._prefixes.put(keys, cache, _bytes(cache))

    def _constraint(self, sampling: Sampling) -> Constraint | None:
        """What holds the answer to its schema; the vocabulary is prepared when it is first needed."""
        if sampling.schema is None:
            return None
        with self._preparing:
            if self._grammars is None:
                width = int(self.model.get_output_embeddings().weight.shape[0])
                self._grammars = Grammars(self.tokenizer.definition, width, self._end_ids)
        return self._grammars.constraint(sampling.schema)

    def _start(self, keys: list[Hashable], *, branch: bool = False) -> tuple[Any, int]:
        """A cache, and how many positions of the prompt it holds already; one is always left to run."""
        from transformers import DynamicCache

        cache, done = self._prefixes.take(keys[:-1], branch=branch)
        return (DynamicCache(), 0) if cache is None else (cache, done)

    def _masks(self, prompt: Prompt, done: int) -> dict[str, Any]:
        """Who sees whom in a prompt some of whose positions see each other; nothing where all is causal."""
        if self._attention == "causal":
            return {}
        block = torch.full((len(prompt),), -1 if self._attention == "images" else 0)
        at = 0
        for number, span in enumerate(prompt.spans):
            if isinstance(span, ImageSpan) and self._attention == "images":
                block[at : at + len(span)] = number
            at += len(span)
        place = torch.arange(len(prompt))
        behind = place[:, None] - place[None]  # [queries, keys]
        same = (block[:, None] == block[None]) & (block[:, None] >= 0)
        full = ((behind >= 0) | same)[None, None, done:].to(self.model.device)
        window = getattr(self.model.config, "sliding_window", None)
        if not window:
            return {"attention_mask": full}
        near = (((behind >= 0) & (behind < window)) | same)[None, None, done:].to(self.model.device)
        return {"attention_mask": {"full_attention": full, "sliding_attention": near}}

    def _forward(self, cache: Any, **inputs: Any) -> torch.Tensor:
        """The logits of the last position, ``[vocabulary]``; the cache grows by the inputs."""
        with self._turn:
            out = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = out.logits[0, -1]
        return logits

    def _looked(self, cache: Any, rows: torch.Tensor, positions: int) -> torch.Tensor:
        """The attention of input rows ``[n, hidden]`` to the first positions, ``[n, positions]``; the cache grows."""
        with self._turn, _telling(self.model):
            out = self.model(
                inputs_embeds=rows[None],
                past_key_values=cache,
                use_cache=True,
                output_attentions=True,
                logits_to_keep=1,
            )
        layers = [layer for layer in out.attentions or () if layer is not None]  # each [1, heads, n, all positions]
        if not layers:
            raise EngineError("this language model does not tell its attention")
        upper = [layer[0, ..., :positions].float().mean(0) for layer in layers[len(layers) // 2 :]]
        return torch.stack(upper).mean(0).cpu()

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Torch's errors as ours."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._prefixes.clear()
            raise OutOfMemory(f"the language model's device has no room for {what}; shorten it") from error
        except (RuntimeError, ValueError, IndexError) as error:
            raise EngineError(f"the language model failed on {what} ({type(error).__name__})") from error


def load(
    language: Language,
    placement: Placement,
    *,
    context: int | None = None,
    prefix_cache: int = 1 << 30,
    threads: int | None = None,
    int4: bool | None = None,
) -> Transformers:
    """Loads a language model tensor by tensor onto its device.

    ``context`` caps the positions of prompt and answer, ``prefix_cache`` is how many bytes of earlier
    prompts' key-value caches stay, ``threads`` sets torch's CPU threads (of the whole process).
    ``int4`` says whether the layers of four-bit checkpoints stay packed (a quarter of the memory, faster answers,
    a product in bfloat16) or are dequantised; left out, they stay packed where the dense model would be `LARGE`.
    """
    if threads:
        torch.set_num_threads(threads)
    started = time.perf_counter()
    device, dtype = placement.resolve()
    config = _config(language)
    try:
        model = _empty(config, dtype, language)
        large = sum(tensor.nbytes for tensor in model.state_dict().values()) >= LARGE
        packed = packing.bind(model, language.weights, device) if int4 or (int4 is None and large) else frozenset()
        model = _filled(model, config, language, device, dtype, packed)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"language model: {device} has no room for it; choose another placement") from error
    size = _size(model)
    seconds = time.perf_counter() - started
    log.info("language model: %.1f MB on %s in %s, %.2f s", size / 1e6, device, dtype, seconds)
    length = int(getattr(config, "max_position_embeddings", 0) or getattr(config, "max_seq_len", 0) or 2048)
    rows = int(model.get_input_embeddings().weight.shape[0])
    return Transformers(
        model,
        _tokenizer(language, rows),
        context=min(length, context or length),
        end_ids=_end_ids(language, rows),
        prefix_cache=prefix_cache,
        attention=language.attention,
    )


def _config(language: Language) -> Any:
    from transformers import AutoConfig

    values = {key: value for key, value in language.config.items() if key not in _NOT_ITS_OWN}
    kind = str(language.config.get("model_type", "llama"))
    try:
        config = AutoConfig.for_model(kind, **values)
    except Exception as error:
        raise CheckpointError(
            f"{_said(language)}: transformers has no use for model_type {kind!r} as configured ({_first_line(error)})"
        ) from error
    name = next((name for name in (*_TABLES, HEAD) if name in language.weights), None)
    if name is not None:
        table = language.weights[name]
        if table.ndim != 2 or not len(table):
            raise CheckpointError(f"{_file(language, name)}: {name} is {list(table.shape)}, a row a token was expected")
        config.vocab_size = len(table)  # configurations are wrong about it, tensors are not
    _check_blocks(config, language)
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _KEYS_AND_VALUES)
    if other:
        raise CheckpointError(
            f"{_said(language)}: {kind!r} keeps other states than keys and values: {', '.join(map(str, other))}"
        )
    return config


def _check_blocks(config: Any, language: Language) -> None:
    """As many blocks are told as there are: a wrong number may be so large that nobody ever builds them."""
    found = {match[1] for name in language.weights if (match := _BLOCK.match(name))}
    told = getattr(config, "num_hidden_layers", None)
    if found and told != len(found):
        raise CheckpointError(
            f"{_said(language)}: num_hidden_layers is {told}, of {len(found)} blocks there are tensors, up to "
            f"{max(found, key=int)}"
        )


def _said(language: Language) -> Path:
    """The file that tells the configuration."""
    return language.folder / "config.json" if language.folder.is_dir() else language.folder


def _file(language: Language, name: str) -> Path:
    """The file of a tensor, as near as the weights tell it."""
    return language.weights.where(name) if isinstance(language.weights, Located) else language.folder


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _empty(config: Any, dtype: torch.dtype, language: Language) -> Any:
    """The model without weights: nothing is allocated."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            make: Any = AutoModelForCausalLM.from_config
            return make(config, dtype=dtype, trust_remote_code=False).eval()
    except Exception as error:  # whatever wrong values make of the code that computes with them
        raise CheckpointError(
            f"{_said(language)}: {config.model_type!r} is no causal language model as configured ({_first_line(error)})"
        ) from error


def _filled(
    model: Any, config: Any, language: Language, device: torch.device, dtype: torch.dtype, packed: frozenset[str]
) -> Any:
    """The model with its weights, each cast and moved as it is read, but for those that are ``packed`` in it already.

    Raises:
        CheckpointError: a tensor that is missing, unknown or of another shape.
    """
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tied = _tied(model, config, language)
    wanted.pop(tied, None)
    missing = sorted(set(wanted) - set(language.weights))
    unknown = sorted(set(language.weights) - set(wanted) - packed - {tied})
    if missing or unknown:
        named, what = (missing, "missing") if missing else (unknown, "unexpected")
        raise CheckpointError(
            f"{language.folder}: {len(named)} tensors of the language model are {what}, first {named[0]!r}"
        )
    state = {}
    for name, shape in wanted.items():
        tensor = language.weights[name]
        file = _file(language, name)
        if tensor.shape != shape:
            raise CheckpointError(f"{file}: {name} is {list(tensor.shape)}, {list(shape)} was expected")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{file}: {name} holds {tensor.dtype}, floating point numbers were expected")
        state[name] = tensor.to(device=device, dtype=dtype, copy=True)
        _check_finite(state[name], tensor, f"{file}: {name}")
    model.load_state_dict(state, assign=True, strict=False)
    if tied == HEAD:
        model.lm_head.weight = model.get_input_embeddings().weight
    elif tied:
        model.get_input_embeddings().weight = model.lm_head.weight
    _fill_buffers(model, config)
    return model.to(device)


def _tied(model: Any, config: Any, language: Language) -> str:
    """Which of head and table is the other one again; nothing where both are the checkpoint's own.

    As transformers has it: a configuration that ties them counts where one of the two is not stored, or both are
    the same; a head of its own is used, whatever the configuration says.
    """
    table = next((name for name in _TABLES if name in model.state_dict()), "")
    if not getattr(config, "tie_word_embeddings", False) or not table or HEAD not in model.state_dict():
        return ""
    stored = [name for name in (table, HEAD) if name in language.weights]
    if len(stored) == 2:
        return HEAD if torch.equal(language.weights[table], language.weights[HEAD]) else ""
    return HEAD if stored == [table] else table


def _check_finite(values: torch.Tensor, stored: torch.Tensor, what: str) -> None:
    """Refuses what is no number. The sum is none where any of them is none, and costs one reading of the memory."""
    if bool(torch.isfinite(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all()):
        return
    if bool(torch.isfinite(stored.float()).all()):
        raise CheckpointError(f"{what} holds numbers too large for {values.dtype}; place it in float32 or bfloat16")
    raise CheckpointError(f"{what} holds numbers that are not finite")


def _fill_buffers(model: Any, config: Any) -> None:
    """Rotary frequencies are computed, not stored; on the meta device they were not."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "scalar_embed_scale"):  # Gemma's table, whose rows are scaled
                child.embed_scale = torch.tensor(child.scalar_embed_scale)
            elif any(buffer.is_meta for buffer in child.buffers(recurse=False)):
                try:
                    setattr(parent, name, type(child)(config))
                except Exception as error:  # whatever wrong values make of the code that computes with them
                    raise CheckpointError(
                        f"language model: {config.model_type!r} computes values in {name!r} that we can't fill in"
                    ) from error


def _tokenizer(language: Language, rows: int) -> FileTokenizer:
    """The tokenizer, each of whose words has its row in the embedding; control tokens may go without."""
    bos = language.config.get("bos_token_id")
    _ids_of(_said(language), language.config, "bos_token_id", rows)
    begins = language.attention != "prompt"
    tokenizer = FileTokenizer(language.folder, bos=bos, backend=language.tokenizer, rows=rows, begins=begins)
    if tokenizer.largest >= rows:
        file = language.folder / "tokenizer.json" if language.folder.is_dir() else language.folder
        raise CheckpointError(f"{file}: has a token {tokenizer.largest}, the embedding (embed_tokens) has {rows} rows")
    return tokenizer


def _end_ids(language: Language, rows: int) -> frozenset[int]:
    """All ids that end an answer, by the configuration and by ``generation_config.json``."""
    file = language.folder / "generation_config.json"
    generation = read_object(file) if file.is_file() else {}
    own = _ids_of(_said(language), language.config, "eos_token_id", rows)
    return own | _ids_of(file, generation, "eos_token_id", rows)


def _ids_of(file: Path, config: Mapping[str, Any], key: str, rows: int) -> frozenset[int]:
    """The ids under a key: none, one or several.

    Raises:
        CheckpointError: one is no id of the vocabulary.
    """
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if type(token) is not int or not 0 <= token < rows:
            raise CheckpointError(f"{file}: {key} is {token!r}, an id below {rows} was expected")
    return frozenset(ids)


@contextmanager
def _telling(model: Any) -> Iterator[None]:
    """Has a model tell its attention weights, which the fused kernels keep to themselves."""
    before = model.config._attn_implementation
    if before == "eager":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _size(model: Any) -> int:
    """Bytes of a model's weights."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _bytes(cache: Any) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _branched(cache: Any, positions: int) -> Any:
    """A cache of its own with the first ``positions`` of another, which stays as it is."""
    from transformers import DynamicCache

    branch = DynamicCache()
    for at, layer in enumerate(cache.layers):
        branch.update(layer.keys[..., :positions, :], layer.values[..., :positions, :], at)
    return branch
