-- pre: what is recorded stays as it is. The database itself refuses to change or delete a row, whoever's mistake it is.
-- Who owns the tables can take the triggers away; then it shows: hospitals hold checkpoints, and bundles are hashed anew.
{{postgresql}} CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
RAISE EXCEPTION USING ERRCODE = 'restrict_violation', MESSAGE = TG_TABLE_NAME || ' is append-only: ' || TG_OP || ' is refused'; END $$;

{{postgresql}} CREATE TRIGGER leaf_stays BEFORE UPDATE OR DELETE ON leaf
FOR EACH ROW EXECUTE FUNCTION refuse_change();
{{postgresql}} CREATE TRIGGER leaf_is_never_emptied BEFORE TRUNCATE ON leaf
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
{{sqlite}} CREATE TRIGGER leaf_is_final BEFORE UPDATE ON leaf
BEGIN SELECT RAISE(ABORT, 'leaf is append-only: UPDATE is refused'); END;
{{sqlite}} CREATE TRIGGER leaf_stays BEFORE DELETE ON leaf
BEGIN SELECT RAISE(ABORT, 'leaf is append-only: DELETE is refused'); END;

{{postgresql}} CREATE TRIGGER node_stays BEFORE UPDATE OR DELETE ON node
FOR EACH ROW EXECUTE FUNCTION refuse_change();
{{postgresql}} CREATE TRIGGER node_is_never_emptied BEFORE TRUNCATE ON node
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
{{sqlite}} CREATE TRIGGER node_is_final BEFORE UPDATE ON node
BEGIN SELECT RAISE(ABORT, 'node is append-only: UPDATE is refused'); END;
{{sqlite}} CREATE TRIGGER node_stays BEFORE DELETE ON node
BEGIN SELECT RAISE(ABORT, 'node is append-only: DELETE is refused'); END;

{{postgresql}} CREATE TRIGGER checkpoint_stays BEFORE UPDATE OR DELETE ON checkpoint
FOR EACH ROW EXECUTE FUNCTION refuse_change();
{{postgresql}} CREATE TRIGGER checkpoint_is_never_emptied BEFORE TRUNCATE ON checkpoint
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
{{sqlite}} CREATE TRIGGER checkpoint_is_final BEFORE UPDATE ON checkpoint
BEGIN SELECT RAISE(ABORT, 'checkpoint is append-only: UPDATE is refused'); END;
{{sqlite}} CREATE TRIGGER checkpoint_stays BEFORE DELETE ON checkpoint
BEGIN SELECT RAISE(ABORT, 'checkpoint is append-only: DELETE is refused'); END;

{{postgresql}} CREATE TRIGGER cosignature_stays BEFORE UPDATE OR DELETE ON cosignature
FOR EACH ROW EXECUTE FUNCTION refuse_change();
{{postgresql}} CREATE TRIGGER cosignature_is_never_emptied BEFORE TRUNCATE ON cosignature
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
{{sqlite}} CREATE TRIGGER cosignature_is_final BEFORE UPDATE ON cosignature
BEGIN SELECT RAISE(ABORT, 'cosignature is append-only: UPDATE is refused'); END;
{{sqlite}} CREATE TRIGGER cosignature_stays BEFORE DELETE ON cosignature
BEGIN SELECT RAISE(ABORT, 'cosignature is append-only: DELETE is refused'); END;

{{postgresql}} CREATE TRIGGER manifest_stays BEFORE UPDATE OR DELETE ON manifest
FOR EACH ROW EXECUTE FUNCTION refuse_change();
{{postgresql}} CREATE TRIGGER manifest_is_never_emptied BEFORE TRUNCATE ON manifest
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
{{sqlite}} CREATE TRIGGER manifest_is_final BEFORE UPDATE ON manifest
BEGIN SELECT RAISE(ABORT, 'manifest is append-only: UPDATE is refused'); END;
{{sqlite}} CREATE TRIGGER manifest_stays BEFORE DELETE ON manifest
BEGIN SELECT RAISE(ABORT, 'manifest is append-only: DELETE is refused'); END;
