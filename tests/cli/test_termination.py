"""SIGTERM: what is done before leaving."""

from __future__ import annotations

import os
import signal
import sys
import threading

from cli import termination


def test_a_command_gets_the_signal_and_is_waited_for() -> None:
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7));"
        " print('ready', flush=True); time.sleep(60)"
    )
    reading, writing = os.pipe()

    def send() -> None:
        os.read(reading, 5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    before = signal.getsignal(signal.SIGTERM)
    assert termination.call([sys.executable, "-c", program], stdout=writing) == 7
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_nothing_changes() -> None:
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(termination.call([sys.executable, "-c", "raise SystemExit(3)"]))
    )
    thread.start()
    thread.join()
    assert codes == [3]


def test_commands_of_other_threads_get_it_through_the_main_one() -> None:
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7));"
        " print('ready', flush=True); time.sleep(60)"
    )
    reading, writing = os.pipe()
    codes: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: codes.append(
                termination.call([sys.executable, "-c", program], stdout=writing)
            )
        )
        for _ in range(2)
    ]
    with termination.on_sigterm(termination.terminate_running):
        for thread in threads:
            thread.start()
        ready = b""
        while len(ready) < 12:
            ready += os.read(reading, 12)
        os.kill(os.getpid(), signal.SIGTERM)
        for thread in threads:
            thread.join()
    assert codes == [7, 7]
