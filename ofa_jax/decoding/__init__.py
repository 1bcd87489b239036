"""Generation with the model: beam search, sampling, tries of allowed outputs, candidate scoring.

    from ofa_jax.decoding import DecodingConfig, Trie, make_decoder, make_scorer
    decode = make_decoder(model, DecodingConfig(beam_size=5, max_length=16))
    hypotheses = decode(variables, batch)
    hypotheses.tokens[:, 0]                         # int32 [B, T], the best outputs, ended by eos

    trie = Trie.from_sequences([[159], [93, 220]], vocab_size)
    hypotheses = make_decoder(model, DecodingConfig(max_length=10), trie)(variables, batch)
    scores = make_scorer(model, candidates)(variables, batch)    # float32 [B, C]

`batch` holds the encoder_* arrays of `ofa_jax.model` and, all optional,

    decoder_code_mask      bool[B]      examples that generate image codes
    decoder_prefix_tokens  int32[B,P]   tokens that the outputs start with, padded at the end; their
                                        lengths may differ between examples
    decoder_seeds          uint32[B]    seeds of the samples of each example: they follow from it
                                        and the key, whatever else is in the batch
    guidance_input_tokens  int32[B,S]   the instruction without what guidance is to follow, as long
                                        as encoder_input_tokens; `DecodingConfig.guidance_scale`
                                        needs it

Everything runs in one compiled program of fixed shapes that stops early. The encoder runs once, its
keys and values are projected once per example and shared by all beams, and the decoder has a cache.
Compiled under `partitioner.mesh_context()`, the batch stays sharded over the mesh.

Contents:
    config       `DecodingConfig`
    search       `make_decoder` and the decoding loop; `beam` and `sampling` select tokens
    scoring      `make_scorer`, log-probabilities of all candidates
    trie         `Trie`
    constraints  which tokens may come next
    hypotheses   `Hypotheses` and the state of the loop
"""

from ofa_jax.decoding.config import DecodingConfig
from ofa_jax.decoding.hypotheses import Hypotheses
from ofa_jax.decoding.scoring import make_scorer
from ofa_jax.decoding.search import make_decoder
from ofa_jax.decoding.trie import Trie

__all__ = ["DecodingConfig", "Hypotheses", "Trie", "make_decoder", "make_scorer"]
