export PATH="$HOME/.heroku/node/bin:$HOME/node_modules/.bin:$PATH"
export NODE_HOME="$HOME/.heroku/node"
export NODE_ENV="${NODE_ENV:-production}"
# `npm start` would ask the registry for a newer npm, and say so among the app's lines
export NPM_CONFIG_UPDATE_NOTIFIER="${NPM_CONFIG_UPDATE_NOTIFIER:-false}"
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
    export MEMORY_AVAILABLE="${MEMORY_AVAILABLE:-$((_davit_limit / 1048576))}"
    export WEB_MEMORY="${WEB_MEMORY:-512}"
    WEB_CONCURRENCY=$((MEMORY_AVAILABLE / WEB_MEMORY))
    if [ "$WEB_CONCURRENCY" -lt 1 ]; then WEB_CONCURRENCY=1; fi
    export WEB_CONCURRENCY
    unset _davit_limit _davit_file
fi
