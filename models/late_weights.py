"""Importance weights for labels that arrive late, as in Ktena et al. (RecSys 2019), "fake negative weighted".

An impression is trained as a negative when its window closes; a positive that comes afterwards is trained as
one more example. So of the positives, of probability p, a share ``s`` stands in the stream as a negative
first, and what is seen of an impression is a positive with p / (1 + s p), a negative with
(1 - p + s p) / (1 + s p). Weights of ``1 + s p`` and ``(1 - p) (1 + s p) / (1 - p + s p)`` make up for both. p is the
model's own prediction, through which no gradient goes. With s = 1, every positive being late, these are
the paper's weights, 1 + p and (1 - p) (1 + p).
"""

from __future__ import annotations

from typing import Any


def importance(tf: Any, logits: Any, share: Any, shift: Any) -> tuple[Any, Any]:
    """What a positive and a negative count, (B, L) tensors.

    Args:
        tf: TensorFlow.
        logits: (B, L), of the model.
        share: (B, L), of a label's positives that come after the impression's negative.
        shift: (B, L), what the log odds of the model lack, 0, or ln(sampling rate).
    """
    p = tf.sigmoid(tf.stop_gradient(logits) + shift)
    seen = 1.0 + share * p
    # 1 - p is 0 in float32 from a logit of about 17 on.
    not_positive = tf.maximum(1.0 - p, 1e-7)
    return seen, seen * not_positive / (not_positive + share * p)
