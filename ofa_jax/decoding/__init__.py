"""How the model answers: beam search, sampling, a trie of allowed answers, scores of candidates.

    from ofa_jax.decoding import DecodingConfig, Trie, make_decoder, make_scorer
    decode = make_decoder(model, DecodingConfig(beam_size=5, max_length=16))
    hypotheses = decode(variables, batch)
    hypotheses.tokens[:, 0]                         # int32 [B, T], the best answers, eos at the end

    trie = Trie.from_answers([[159], [93, 220]], vocab_size)
    answer = make_decoder(model, DecodingConfig(max_length=10), trie)(variables, batch)
    scores = make_scorer(model, answers)(variables, batch)       # float32 [B, C]

`batch` holds what `ofa_jax.model` reads of the encoder_* arrays and, both optional,
decoder_code_mask bool[B] (rows that write image codes) and decoder_prefix_tokens int32[B,P]: tokens
that each answer begins with, padded at the end, of another length in each row if need be.

Everything happens in one compiled program of fixed shapes that stops early: the encoder runs once,
its keys and values are projected once per example and read by all beams, the decoder goes on from a
cache. Compiled under `partitioner.mesh_context()`, a batch that is split over the mesh stays split.
"""

from ofa_jax.decoding.config import DecodingConfig
from ofa_jax.decoding.hypotheses import Hypotheses
from ofa_jax.decoding.scoring import make_scorer
from ofa_jax.decoding.search import make_decoder
from ofa_jax.decoding.trie import Trie

__all__ = ["DecodingConfig", "Hypotheses", "Trie", "make_decoder", "make_scorer"]
