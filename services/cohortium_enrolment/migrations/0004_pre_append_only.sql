-- pre: what is recorded stays as it is: the database itself refuses to change or delete a row, whoever's mistake it is.
{{postgresql}} CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
RAISE EXCEPTION USING ERRCODE = 'restrict_violation', MESSAGE = TG_TABLE_NAME || ' is append-only: ' || TG_OP || ' is refused'; END $$;

{{postgresql}} CREATE TRIGGER manifest_stays BEFORE UPDATE OR DELETE ON manifest
FOR EACH ROW EXECUTE FUNCTION refuse_change();
{{postgresql}} CREATE TRIGGER manifest_is_never_emptied BEFORE TRUNCATE ON manifest
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
{{sqlite}} CREATE TRIGGER manifest_is_final BEFORE UPDATE ON manifest
BEGIN SELECT RAISE(ABORT, 'manifest is append-only: UPDATE is refused'); END;
{{sqlite}} CREATE TRIGGER manifest_stays BEFORE DELETE ON manifest
BEGIN SELECT RAISE(ABORT, 'manifest is append-only: DELETE is refused'); END;
