export PATH="$HOME/.heroku/python/bin:$PATH"
export PYTHONUNBUFFERED=true
export PYTHONPATH="${PYTHONPATH:-$HOME}"
export LANG="${LANG:-C.UTF-8}"
export FORWARDED_ALLOW_IPS="${FORWARDED_ALLOW_IPS:-*}"
export GUNICORN_CMD_ARGS="${GUNICORN_CMD_ARGS:---access-logfile -}"
if [ -z "${WEB_CONCURRENCY:-}" ]; then
    _davit_limit=
    for _davit_file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
        if [ -r "$_davit_file" ]; then
            read -r _davit_limit <"$_davit_file"
            break
        fi
    done
    case "$_davit_limit" in
        '' | *[!0-9]* | ????????????????*) _davit_limit=536870912 ;;
    esac
    # 256 MB a worker, and no more than two for each core and one
    _davit_workers=$((_davit_limit / 268435456))
    _davit_cores=$((2 * $(nproc) + 1))
    if [ "$_davit_workers" -gt "$_davit_cores" ]; then _davit_workers=$_davit_cores; fi
    if [ "$_davit_workers" -lt 1 ]; then _davit_workers=1; fi
    export WEB_CONCURRENCY=$_davit_workers
    unset _davit_limit _davit_file _davit_workers _davit_cores
fi
