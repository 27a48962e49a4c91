"""How a node is put together: a module for each group of rooms, each room given what it needs of those before.

What a room needs of a later one it gets as a function, called when all are there.
"""

from p2pnode.node.assembly.answers import assemble_answers
from p2pnode.node.assembly.devices import assemble_devices
from p2pnode.node.assembly.plans import assemble_plans
from p2pnode.node.assembly.stages import assemble_stages
from p2pnode.node.assembly.telling import assemble_telling
from p2pnode.node.assembly.upkeep import assemble_upkeep

GROUPS = (
    assemble_devices,
    assemble_stages,
    assemble_plans,
    assemble_answers,
    assemble_telling,
    assemble_upkeep,
)
"""In this order."""
