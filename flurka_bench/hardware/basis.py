"""What a target's predictions rest on, in a line: its datasheet, a calibration, or a default."""

from dataclasses import dataclass

from flurka_bench.hardware.measured import FIGURES
from flurka_bench.hardware.profile import Profile

DATASHEET, CALIBRATION, DEFAULT = "datasheet", "calibration", "default"
_ASSUMED = "assumed"  # how the note of a figure begins that nobody reported (detect.detect_cpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """``kind`` is ``datasheet``, ``calibration`` (of what ``words`` names; the rest is from the
    datasheet) or ``default``; ``next_step`` says what would make the predictions better, or test
    them."""

    hardware: str
    kind: str
    words: str
    next_step: str

    @property
    def line(self) -> str:
        """``"h100-sxm-80gb: datasheet only. Next: ..."``."""
        return f"{self.hardware}: {self.words}. Next: {self.next_step}."


def basis(profile: Profile) -> Basis:
    """What predictions on this target rest on."""
    if profile.is_calibrated:
        whole = profile.kind == "cpu" or "date" in profile.measured_about  # by our own verb
        return Basis(
            hardware=profile.name,
            kind=CALIBRATION,
            words=_calibrated(profile),
            next_step="a run on it ('flurka-bench run quick') shows how far they are off"
            if whole
            else "run 'flurka-bench calibrate' on it for what is missing",
        )
    if any(figure.note.startswith(_ASSUMED) for figure in profile.datasheet.values()):
        return Basis(
            hardware=profile.name,
            kind=DEFAULT,
            words="a default: no profile for this CPU was found, and its memory bandwidth is"
            " assumed",
            next_step="run 'flurka-bench calibrate' on it",
        )
    return Basis(
        hardware=profile.name,
        kind=DATASHEET,
        words="datasheet only, no calibration",
        next_step="run 'flurka-bench calibrate' on it",
    )


def _calibrated(profile: Profile) -> str:
    about = profile.measured_about
    when = f" on {about['date']}" if "date" in about else ""
    rows = about.get("num_rows")
    count = f" with {rows:.12g} rows" if isinstance(rows, (int, float)) else ""
    source = f" ({about['source']})" if "source" in about else ""
    kinds = _kinds(profile)
    rest = "" if profile.kind == "cpu" else "; the rest is from the datasheet"
    return f"calibrated{when}{count}{source}: {', '.join(kinds)}{rest}"


def _kinds(profile: Profile) -> list[str]:
    """What the measured numbers are of: ``matmul bfloat16``, ``attention``, ``cpu float32``."""
    found = dict.fromkeys(
        " ".join(group[:2] if group[0] in ("matmul", "cpu") else group[:1])
        for group in profile.measured.groups()
    )
    return [kind for kind in found if kind != FIGURES] or list(found)
