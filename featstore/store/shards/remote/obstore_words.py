"""What obstore says when something fails, in our words; how it is called, which signals do not reach, nor forks."""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from featstore.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = TypeVar("Answer")

_AWS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN too, if there is one), or "
    "AWS_SKIP_SIGNATURE=true for a bucket that anyone may read"
)
REFUSES = "refuses these credentials"
_REFUSED = ("403 Forbidden", "401 Unauthorized")
_NO_RANGES = ("Range request not supported", "Received non-partial response")
_OTHER_REGION = ("without LOCATION", "AuthorizationHeaderMalformed", "PermanentRedirect")
_NO_STORE = ("invalid list response", "extract metadata", "without LOCATION")
_used_in: list[int] = []  # the process in which obstore was first used, to which its threads belong


def refuse_forked(where: str) -> None:
    """Raise StoreError if obstore was used before this process was forked: it would wait for threads left behind."""
    if not _used_in:
        _used_in.append(os.getpid())
    if _used_in[0] != os.getpid():
        raise StoreError(
            f"{where} cannot be asked by this process, which was forked after a store was asked",
            remedy="start processes by spawn (a DataLoader with multiprocessing_context='spawn'), or fork before the "
            "store is first opened; what was fetched before is served all the same",
        )


class _Caller:
    """A thread that calls what it is given, one after the other."""

    def __init__(self) -> None:
        self.asked: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        threading.Thread(target=self._run, name="featstore-ask", daemon=True).start()

    def _run(self) -> None:
        while True:
            future, call = self.asked.get()
            try:
                future.set_result(call())
            except BaseException as exc:  # of whom it concerns: who waits for the answer
                future.set_exception(exc)


_callers: list[_Caller] = []  # those that wait for a call


def ask(call: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer:
    """Return what a function of obstore does. A signal interrupts who waits for it, but not obstore, which goes on."""
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        return call(*arguments, **options)
    caller = _callers.pop() if _callers else _Caller()
    future: Future[Answer] = Future()
    caller.asked.put((future, partial(call, *arguments, **options)))
    try:
        return future.result()
    finally:
        if future.done():
            _callers.append(caller)


def explain(said: str, where: str) -> tuple[str, str]:
    """Return what is the matter with the place `where` of which obstore said `said`, and the remedy."""
    others = "set the environment variables by which obstore is told its credentials"
    credentials = _AWS if where.startswith("s3") else others
    if any(words in said for words in _REFUSED) or "necessary privileges" in said:
        return REFUSES, credentials
    if "169.254." in said or "nable to load credentials" in said or "ssing credentials" in said:
        return "cannot be asked without credentials", credentials
    if any(words in said for words in _NO_RANGES):
        return (
            "answers without ranges of bytes, by which records are read",
            "have a web server that knows ranges serve the files (python -m http.server does not)",
        )
    if any(words in said for words in _OTHER_REGION) and where.startswith("s3"):
        return "is in another region than it was asked in", "set AWS_REGION to the bucket's region"
    code = re.search(r"status code: (\d{3})", said)
    if code and (code[1] == "429" or code[1] > "499"):
        return f"answers with {code[1]}", "it is overloaded or broken: try again later"
    if code or any(words in said for words in _NO_STORE):
        told = os.environ.get("AWS_ENDPOINT_URL") if where.startswith("s3") else None
        server = f", and AWS_ENDPOINT_URL, {told}," if told else ""
        return (
            "does not answer as such a store does",
            f"see whether this URL{server} is the store's",
        )
    return "does not answer", "see whether its server is up and reached from here, then try again"


def short(said: str) -> str:
    """Return the first sentence of what obstore says, and the code that the server gave."""
    code = said.partition("<Code>")[2].partition("</Code>")[0]
    first = said.partition("\n")[0].partition(": <?xml")[0]
    return (f"{code}: {first}" if code else first)[:300]
