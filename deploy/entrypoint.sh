#!/bin/sh
# Puts addresses that hold a password into the environment from files, so that no password is in a manifest or in the
# output of `docker inspect`: COHORTIUM_AMQP_URL_FILE names the file whose content becomes COHORTIUM_AMQP_URL.
set -eu
for name in COHORTIUM_AMQP_URL COHORTIUM_MANAGEMENT_URL COHORTIUM_DATABASE_URL COHORTIUM_REDIS_URL; do
    file=$(printenv "${name}_FILE" || true)
    if [ -n "$file" ]; then
        value=$(cat "$file") || exit 2
        export "$name=$value"
    fi
done
exec "$@"
