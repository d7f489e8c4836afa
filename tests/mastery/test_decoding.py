import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from sftknow.mastery.decoding import ByteLevelDecoder, WholeDecoder, decoder_for
from tests.tiny import tiny_tokenizer


def byte_level():
    tokenizer = tiny_tokenizer(["Zürich, Köln, Łódź, 東京, Москва, São Tomé 🙂"])
    tokenizer.add_tokens([AddedToken("東京 station"), AddedToken("plain")])
    return tokenizer


def sentence_piece():
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁Paris", "is", "▁in", ".", "é"]
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


BYTE_LEVEL, SENTENCE_PIECE = byte_level(), sentence_piece()


def test_each_tokenizer_gets_the_decoder_it_allows():
    assert isinstance(decoder_for(BYTE_LEVEL), ByteLevelDecoder)
    assert isinstance(decoder_for(SENTENCE_PIECE), WholeDecoder)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCE_PIECE], ids=["byte-level", "sentence-piece"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_token_by_token_is_the_tokenizers_own_decode(tokenizer, data):
    decoder = decoder_for(tokenizer)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=24))
    continuation, before = decoder.start, ""
    for i, token in enumerate(ids):
        continuation = decoder.extend(continuation, token)
        whole = tokenizer.decode(ids[: i + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert decoder.finish(continuation) == whole
        assert whole.startswith(continuation.text)
        assert set(whole[len(continuation.text) :]) <= {"\ufffd"}
        if isinstance(decoder, ByteLevelDecoder):
            assert continuation.text.startswith(before)
        before = continuation.text


def test_a_character_is_shown_when_its_last_byte_is_there():
    decoder = decoder_for(BYTE_LEVEL)
    token_of = {piece: i for i, piece in reversed(list(enumerate(decoder.pieces)))}
    continuation, seen = decoder.start, []
    for byte in "aé🙂".encode():
        continuation = decoder.extend(continuation, token_of[bytes([byte])])
        seen.append(continuation.text)
    assert seen == ["a", "a", "aé", "aé", "aé", "aé", "aé🙂"]


def test_ids_beyond_the_vocabulary_add_nothing():
    # Embeddings are often padded to a round number of rows.
    decoder = decoder_for(BYTE_LEVEL)
    assert decoder.extend(decoder.start, len(BYTE_LEVEL) + 7).text == ""
