# Sourced by the training scripts, in the batch shell. It gives them until_time_limit, and needs RUN_DIR.
#
# Slurm sends USR1 to the batch shell some time before the limit (#SBATCH --signal=B:USR1@SECONDS). The shell passes it on to every process of
# the job's steps; the ranks agree on it, write a checkpoint after the step that they are in, and end. Then the job is requeued, and its
# next attempt goes on with the checkpoint.

time_is_up=
signalled=
trap on_time_limit USR1

on_time_limit() {
  time_is_up=yes signalled=yes
  say "the time limit is near: asking the ranks for a checkpoint"
  scancel --signal=USR1 "$SLURM_JOB_ID"
}

say() { echo "$(date +%T) slurm job $SLURM_JOB_ID, attempt ${SLURM_RESTART_COUNT:-0}: $*"; }

# until_time_limit COMMAND...: run the job step; does not return.
until_time_limit() {
  local step status=0 checkpoint="$RUN_DIR/checkpoints/last.ckpt" before
  before=$(stat -c %y "$checkpoint" 2>/dev/null || true)
  say "on $SLURM_JOB_NUM_NODES node(s): $SLURM_JOB_NODELIST"
  "$@" &
  step=$!
  while true; do # `wait` also ends when a signal comes
    signalled=
    wait "$step" && status=0 || status=$?
    [ -n "$signalled" ] || break
  done
  if [ "$status" -eq 0 ] || [ -z "$time_is_up" ]; then
    say "ended with exit status $status"
    exit "$status"
  fi
  if [ "$(stat -c %y "$checkpoint" 2>/dev/null || true)" = "$before" ]; then
    say "no checkpoint was written in this attempt, so the next one would come no further: not requeued. Raise --time, or the seconds in --signal"
    exit 1
  fi
  say "requeueing: the next attempt goes on with $checkpoint"
  if scontrol requeue "$SLURM_JOB_ID"; then
    sleep 120 # Slurm ends this shell
  fi
  say "requeue refused: submit the same script again, with --train.run_dir $RUN_DIR --train.resume auto"
  exit 1
}
