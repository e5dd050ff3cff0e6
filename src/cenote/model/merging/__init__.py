"""Values that merge: concurrent changes of one value all count, whoever is told of them first.

State-based, plain JSON (`wire.py`), exact by the argument in `base.py`: read that first.
"""

from cenote.model.merging.actors import Actors as Actors
from cenote.model.merging.base import Merging as Merging
from cenote.model.merging.base import merge as merge
from cenote.model.merging.counters import GCounter as GCounter
from cenote.model.merging.counters import PNCounter as PNCounter
from cenote.model.merging.glance import is_merging as is_merging
from cenote.model.merging.glance import kind_of as kind_of
from cenote.model.merging.log import AppendLog as AppendLog
from cenote.model.merging.map import ORMap as ORMap
from cenote.model.merging.registers import LWWRegister as LWWRegister
from cenote.model.merging.registers import MVRegister as MVRegister
from cenote.model.merging.sets import GSet as GSet
from cenote.model.merging.sets import ORSet as ORSet
from cenote.model.merging.wire import KINDS as KINDS
