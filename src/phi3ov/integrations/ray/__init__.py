"""Batches on a Ray cluster. Needs ``pip install "phi3ov[ray]"`` on every node.

`answer_dataset` answers the conversations of a Ray dataset with a pool of actors, each of which
holds a loaded model (`AnswerConversations`). `claim_checkpoint` makes Ray's checkpoint refuse
another model, other options or another input. ``phi3ov batch --ray`` answers a JSONL file
(``job.py``).

    dataset ─▶ map_batches(AnswerConversations) ─▶ answer, finish_reason, usage, error
                     one actor a node: load_model(path, engine="worker"), iter_batch(block)

Ray is imported when a function needs it, so `AnswerConversations` can be imported without Ray.
"""

from .actors import AnswerConversations, LoadOptions
from .dataset import answer_dataset, claim_checkpoint

__all__ = ["AnswerConversations", "LoadOptions", "answer_dataset", "claim_checkpoint"]
