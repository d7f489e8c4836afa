"""Small tokenizers in the manner of well-known families, which differ in who adds BOS and where spaces go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import PLACES, tiny_facts, tiny_tokenizer

TEXTS = [*(fact.question for fact in tiny_facts(64)), *PLACES, "<|question|> <|answer|>"]


def _bpe(special: list[str], *, byte_level: bool, unk: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=unk))
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        alphabet = []
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=384, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def gpt2_style() -> Any:
    """One token is BOS and EOS; it is not added, and there is no padding token."""
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=_bpe([end], byte_level=True), bos_token=end, eos_token=end)


def qwen_style() -> Any:
    """No BOS at all."""
    tokenizer = _bpe(["<|endoftext|>", "<|im_end|>"], byte_level=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _sentencepiece(*, adds_bos: bool, legacy: bool) -> Any:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


def llama2_style() -> Any:
    """SentencePiece as converted: a normalizer puts a space before every text; BOS is added."""
    return _sentencepiece(adds_bos=True, legacy=True)


def mistral_style() -> Any:
    """SentencePiece's newer form: the space goes before the first piece only; BOS is added."""
    return _sentencepiece(adds_bos=True, legacy=False)


def sentencepiece_without_bos() -> Any:
    """Has a BOS, does not add it, and splits a text otherwise where BOS stands in it."""
    return _sentencepiece(adds_bos=False, legacy=False)


def llama2_with_end() -> Any:
    """As `llama2_style`, set up to close every text with the end token too (``add_eos_token``)."""
    tokenizer = llama2_style()
    both = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = both
    return tokenizer


STYLES: dict[str, Callable[[], Any]] = {
    "llama-3": tiny_tokenizer,
    "llama-2": llama2_style,
    "mistral": mistral_style,
    "gpt-2": gpt2_style,
    "qwen": qwen_style,
    "sentencepiece-without-bos": sentencepiece_without_bos,
    "llama-2-with-end": llama2_with_end,
}
