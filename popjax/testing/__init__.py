"""Checks of your own methods, agents and environments: those that pass can be used wherever ours can.

    from popjax import testing

    def test_my_method():
        env = popjax.make("my_package.my_env:make")
        testing.check_env(env)
        testing.check_method(my_method.build(env, my_method.Config(hidden=(4,))), env)

Use small shapes, since every check compiles. A fault is reported as a one-line ValueError that names it.
"""

from popjax.testing.agent import check_agent
from popjax.testing.env import check_env
from popjax.testing.method import check_in_place, check_members, check_method

__all__ = ["check_agent", "check_env", "check_in_place", "check_members", "check_method"]
