"""DDC-AT-N (Table 3): the mask marks the changed pixels of the adversarial images alone."""

from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.methods.base import Portion, Update
from ddcat_train.methods.ddcat import conquer
from ddcat_train.methods.division import divide
from ddcat_train.networks import Segmenter

__all__ = ["ddcat_n"]


def ddcat_n(segmenter: Segmenter, portion: Portion, *, attack: AttackConfig, options: MethodConfig) -> list[Update]:
    """
    As `ddcat`, with M_clean = 0 and M_adv = 1[B_clean != B_adv].

    Only the adversarial images are attacked: 3 forwards and 2.5 backwards for n = 3 and the start at x. Another start, or p
    from Alg. 2, costs half a forward more each.
    """
    attack = attack.for_method(options)
    predict = options.predicted_mask == "algorithm-2"
    division = divide(segmenter, portion, attack=attack, mark_clean=False, mark_adversarial=True, predict_mask=predict)
    return conquer(segmenter, portion, division, options)
