"""DDC-AT-M (Table 3): the mask marks the changed pixels of the clean and of the adversarial images."""

from ddcat_train.config import AttackConfig, MethodConfig
from ddcat_train.methods.base import Portion, Update
from ddcat_train.methods.ddcat import conquer
from ddcat_train.methods.division import divide
from ddcat_train.networks import Segmenter

__all__ = ["ddcat_m"]


def ddcat_m(segmenter: Segmenter, portion: Portion, *, attack: AttackConfig, options: MethodConfig) -> list[Update]:
    """
    As `ddcat`, with M = 1[B_clean != B_adv] for all images.

    5 forwards and 4 backwards for n = 3 and the start at x. Another start costs a whole forward more, for B_clean of all
    images; p from Alg. 2 costs nothing.
    """
    attack = attack.for_method(options)
    predict = options.predicted_mask == "algorithm-2"
    division = divide(segmenter, portion, attack=attack, mark_adversarial=True, predict_mask=predict)
    return conquer(segmenter, portion, division, options)
