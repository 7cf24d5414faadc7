"""LUSER: Tables 2 (whole, or a task of it), 3 and 4 of the paper, the methods in pairs, and curves of training.

Guan, Jin, Romberg and Davenport, Loop unrolled shallow equilibrium regularizer (LUSER), 2022.
"""

from functools import partial

from pyrecon.experiments.luser.figures import curves, picture
from pyrecon.experiments.luser.study import SEEDS, TASKS, LUSERStudy
from pyrecon.experiments.luser.tables import comparisons, table_2, table_3, table_4
from pyrecon.experiments.study import Paper
from pyrecon.train.run import Option

PAPER = Paper(
    "luser",
    LUSERStudy,
    {"2": table_2, **{f"2-{task}": partial(table_2, tasks=(task,)) for task in TASKS}, "3": table_3, "4": table_4},
    {3: curves},
    {"pairs": comparisons},
    picture,
    (Option("--seeds", int, SEEDS, "Models of every kind.", least=1),),
    "Models are trained first, 28 kinds of them, in hours.",
)

__all__ = ["PAPER", "LUSERStudy"]
