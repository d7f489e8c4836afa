import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sftknow.grading.decoding import ByteFallbackDecoder, ByteLevelDecoder, WholeDecoder, decoder_for
from tests.tiny import tiny_tokenizer

WORDS = ["▁", "▁▁", "▁Paris", "is", "▁in", ".", "é", "É", "東"]


def byte_level():
    tokenizer = tiny_tokenizer(["Zürich, Köln, Łódź, 東京, Москва, São Tomé 🙂"])
    tokenizer.add_tokens([AddedToken("東京 station"), AddedToken("plain")])
    return tokenizer


def sentence_piece(*, strip=True):
    """As Llama 2's (which takes a space off the beginning) or Gemma's (which does not)."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    tokenizer.add_tokens([AddedToken("▁added"), AddedToken("two words")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def other():
    """A decoder whose pieces depend on their place."""
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(["[UNK]", "[SEP]", "Par", "##is", "in", "."])}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]")


TOKENIZERS = {
    "byte-level": (byte_level(), ByteLevelDecoder),
    "llama-2": (sentence_piece(), ByteFallbackDecoder),
    "gemma": (sentence_piece(strip=False), ByteFallbackDecoder),
    "word-piece": (other(), WholeDecoder),
}
LLAMA_2 = TOKENIZERS["llama-2"][0]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_tokenizer_gets_the_decoder_it_allows(name):
    tokenizer, kind = TOKENIZERS[name]
    assert isinstance(decoder_for(tokenizer), kind)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_whole_text_is_the_tokenizers_own_and_what_is_settled_stays(name, data):
    tokenizer, kind = TOKENIZERS[name]
    decoder = decoder_for(tokenizer)
    size = len(tokenizer)
    # Byte tokens and words about equally often, so that runs of bytes are complete, broken and interrupted.
    token = st.one_of(st.integers(0, size - 1), st.integers(max(0, size - 12), size - 1), st.sampled_from([0, 1, 2]))
    encoded = st.text(max_size=4).map(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = [t for part in data.draw(st.lists(st.one_of(token.map(lambda t: [t]), encoded), max_size=14)) for t in part]
    prefixes = [ids[:end] for end in range(len(ids) + 1)]
    whole = decoder.whole(prefixes)
    assert whole == [
        tokenizer.decode(prefix, skip_special_tokens=True, clean_up_tokenization_spaces=False) for prefix in prefixes
    ]
    settled = decoder.settled(prefixes)
    assert all(text.startswith(part) for text, part in zip(whole, settled, strict=True))
    if kind is not WholeDecoder:
        for i, part in enumerate(settled):
            assert all(later.startswith(part) for later in whole[i:])
        # What is said to be settled is settled: text is held back only after a token said to be open.
        if kind is ByteFallbackDecoder and ids and not decoder.unsettled[ids[-1]]:
            assert settled[-1] == whole[-1]


def test_a_character_is_shown_when_its_last_byte_is_there():
    decoder = decoder_for(TOKENIZERS["byte-level"][0])
    token_of = {piece: i for i, piece in reversed(list(enumerate(decoder.pieces)))}
    ids = [token_of[bytes([byte])] for byte in "aé🙂".encode()]
    seen = decoder.settled([ids[:end] for end in range(1, len(ids) + 1)])
    assert seen == ["a", "a", "aé", "aé", "aé", "aé", "aé🙂"]
    assert decoder.whole([ids[:2]]) == ["a\ufffd"]


def test_a_run_of_bytes_is_settled_when_it_has_ended():
    # One wrong byte takes the whole run's characters with it, so that none of them is certain before.
    decoder = decoder_for(LLAMA_2)
    byte = {value: LLAMA_2.convert_tokens_to_ids(f"<0x{value:02X}>") for value in range(256)}
    accent = [byte[value] for value in "é".encode()]
    end = LLAMA_2.convert_tokens_to_ids("is")
    assert decoder.settled([accent, [*accent, end], [*accent, 1, byte[0xFF], end]]) == ["", "éis", "\ufffd" * 3 + "is"]
    assert decoder.whole([accent, [*accent, byte[0xC3]]]) == ["é", "\ufffd" * 3]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_beyond_the_vocabulary_add_nothing(name):
    # Embeddings are often padded to a round number of rows.
    tokenizer, _ = TOKENIZERS[name]
    decoder = decoder_for(tokenizer)
    assert decoder.whole([[len(tokenizer) + 7], []]) == decoder.settled([[len(tokenizer) + 7], []]) == ["", ""]
