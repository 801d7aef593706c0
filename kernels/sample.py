"""stand-in until merged"""

import torch


def sample_ref(logits, temperature, top_k, top_p, min_p, seed, index):
    from zweave.engine.sampler import sample_token
    from zweave.request import Sampling

    finite = logits.isfinite().all(-1)
    ids = logits.argmax(-1)
    for b in range(len(logits)):
        if temperature[b] > 0 and finite[b]:
            s = Sampling(
                temperature=float(temperature[b]),
                top_k=int(top_k[b]),
                top_p=float(top_p[b]),
                min_p=float(min_p[b]),
                seed=0,
            )
            ids[b] = sample_token(logits[b], s, int(seed[b]) & (2**64 - 1), int(index[b]))
    return torch.where(finite, ids, 0), finite
