#!/bin/sh
# Makes, renews or removes one hospital's login at the broker. Run it where rabbitmqctl reaches the broker:
#
#   site-login.sh add SITE_ID     reads a password from standard input; the same again sets a new password
#   site-login.sh remove SITE_ID  the login ends and its open connections are closed
#
# A site may read its own three queues and write under its own keys of `uplink`. It may declare nothing.
set -eu

VHOST=${VHOST:-cohortium}
NAMESPACE=${NAMESPACE:-cohortium}
RABBITMQCTL=${RABBITMQCTL:-rabbitmqctl}

usage() {
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

[ $# -eq 2 ] || usage
site=$2
printf '%s\n' "$site" | grep -Eqx '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}' || {
    echo "site-login: $site is not a site id (a UUID in lower case)" >&2
    exit 2
}

# rabbitmqctl reads standard input even where it wants nothing from it.
control() { $RABBITMQCTL --quiet "$@" </dev/null; }

case $1 in
add)
    IFS= read -r password || [ -n "$password" ]
    users=$(control list_users --no-table-headers)
    if printf '%s\n' "$users" | cut -f 1 | grep -qx "$site"; then change=change_password; else change=add_user; fi
    # By a pipe, not as an argument: arguments can be seen by everybody on the machine.
    printf '%s\n' "$password" | $RABBITMQCTL --quiet "$change" "$site"
    control set_permissions -p "$VHOST" "$site" \
        '^$' "^$NAMESPACE\\.uplink\$" "^$NAMESPACE\\.site\\.$site\\.(control|bulk|results)\$"
    control set_topic_permissions -p "$VHOST" "$site" "$NAMESPACE.uplink" "^site\\.$site\\." '^$'
    control set_user_limits "$site" '{"max-connections": 4, "max-channels": 64}'
    ;;
remove)
    control delete_user "$site"
    control close_all_user_connections "$site" "login removed" || true
    ;;
*) usage ;;
esac
