"""Every bound of the project: the unit is in the name, the reason beside the number.

A peer's numbers are compared with these before anything is allocated. The modules in here only sort them: a bound is
imported from `p2pnode.limits` by a name that no other module has, so that it can move without its users.
"""

from p2pnode.limits.api import *
from p2pnode.limits.compute import *
from p2pnode.limits.credit import *
from p2pnode.limits.external import *
from p2pnode.limits.models import *
from p2pnode.limits.node import *
from p2pnode.limits.planner import *
from p2pnode.limits.record import *
from p2pnode.limits.transport import *
