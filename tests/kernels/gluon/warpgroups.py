"""A program's warpgroups, one at a time and in any order, and what each knows to have happened before.

Clocks are vector clocks: an event of an actor (a warpgroup, or the TMA engine on behalf of a barrier) has a number, and
whoever has met the actor since, by a barrier, knows that number. Two accesses that no barrier orders are a race, in
whatever order they happened here. cf. Flanagan and Freund, FastTrack (2009).
"""

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

Clock = dict[int, int]
"""The last known event of each actor."""


class Fault(AssertionError):
    """What a GPU would answer with wrong numbers, a hang or an illegal access."""


def merge(clock: Clock, other: Clock) -> None:
    """Let ``clock`` know all that ``other`` knows."""
    for actor, event in other.items():
        clock[actor] = max(clock.get(actor, 0), event)


class Warpgroup:
    """A partition of a program: its clock, and its asynchronous work that it has not waited for."""

    def __init__(self, actor: int, known: Clock) -> None:
        self.actor = actor
        self.clock: Clock = {**known, actor: known.get(actor, 0) + 1}
        self.products: list[Any] = []
        self.stores: list[Any] = []
        self.unfenced: list[Any] = []
        self.go = threading.Event()
        self.ready: Callable[[], bool] = lambda: True
        self.done = False

    def tick(self) -> Clock:
        """What the warpgroup knows now; what it does from here on is later."""
        known = dict(self.clock)
        self.clock[self.actor] += 1
        return known

    def check_finished(self) -> None:
        """Nothing asynchronous may outlive its warpgroup."""
        if self.products or self.stores:
            raise Fault(f"ended with {len(self.products)} products and {len(self.stores)} stores in flight")


class Schedule:
    """Runs warpgroups in turns that ``seed`` draws; they change where one meets memory or another."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.actors = 0
        self.current = Warpgroup(self.new_actor(), {})
        self.all = [self.current]
        self.failure: BaseException | None = None

    def new_actor(self) -> int:
        """A number that no other actor has."""
        self.actors += 1
        return self.actors

    def pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let others go on; come back when ``ready``."""
        me = self.current
        me.ready = ready
        self._pass_on(me)

    def _pass_on(self, me: Warpgroup) -> None:
        able = [w for w in self.all if not w.done and w.ready()]
        if not able:
            raise Fault("deadlock: every warpgroup waits for a barrier")
        self.current = self.random.choice(able)
        if self.current is not me:
            self.current.go.set()
            if not me.done:
                me.go.wait()
                me.go.clear()
                if self.failure:
                    raise SystemExit

    def fork(self, partitions: Sequence[tuple[Callable[..., Any], Sequence[Any]]]) -> None:
        """Run each function with its arguments as a warpgroup of its own, and wait for all."""
        parent = self.current
        known = parent.tick()
        self.all = [Warpgroup(self.new_actor(), known) for _ in partitions]
        ended = threading.Event()
        threads = [
            threading.Thread(target=self._run, args=(w, function, arguments, ended), daemon=True)
            for w, (function, arguments) in zip(self.all, partitions, strict=True)
        ]
        for thread in threads:
            thread.start()
        self.current = self.random.choice(self.all)
        self.current.go.set()
        ended.wait()
        for thread in threads:
            thread.join()
        if self.failure:
            raise self.failure
        for warpgroup in self.all:
            merge(parent.clock, warpgroup.clock)
        self.current, self.all = parent, [parent]

    def _run(
        self, me: Warpgroup, function: Callable[..., Any], arguments: Sequence[Any], ended: threading.Event
    ) -> None:
        me.go.wait()
        me.go.clear()
        if self.failure:
            return
        try:
            function(*arguments)
            me.check_finished()
            me.done = True
            if all(w.done for w in self.all):
                ended.set()
            else:
                self._pass_on(me)
        except SystemExit:
            pass
        except BaseException as error:
            self.failure = error
            for w in self.all:
                w.go.set()
            ended.set()
