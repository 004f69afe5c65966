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

{{postgresql}} CREATE TRIGGER ledger_statement_stays BEFORE UPDATE OR DELETE ON ledger_statement
FOR EACH ROW EXECUTE FUNCTION refuse_change();
{{postgresql}} CREATE TRIGGER ledger_statement_is_never_emptied BEFORE TRUNCATE ON ledger_statement
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
{{sqlite}} CREATE TRIGGER ledger_statement_is_final BEFORE UPDATE ON ledger_statement
BEGIN SELECT RAISE(ABORT, 'ledger_statement is append-only: UPDATE is refused'); END;
{{sqlite}} CREATE TRIGGER ledger_statement_stays BEFORE DELETE ON ledger_statement
BEGIN SELECT RAISE(ABORT, 'ledger_statement is append-only: DELETE is refused'); END;

{{postgresql}} CREATE TRIGGER run_price_stays BEFORE UPDATE OR DELETE ON run_price
FOR EACH ROW EXECUTE FUNCTION refuse_change();
{{postgresql}} CREATE TRIGGER run_price_is_never_emptied BEFORE TRUNCATE ON run_price
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
{{sqlite}} CREATE TRIGGER run_price_is_final BEFORE UPDATE ON run_price
BEGIN SELECT RAISE(ABORT, 'run_price is append-only: UPDATE is refused'); END;
{{sqlite}} CREATE TRIGGER run_price_stays BEFORE DELETE ON run_price
BEGIN SELECT RAISE(ABORT, 'run_price is append-only: DELETE is refused'); END;

{{postgresql}} CREATE TRIGGER consent_record_stays BEFORE UPDATE OR DELETE ON consent_record
FOR EACH ROW EXECUTE FUNCTION refuse_change();
{{postgresql}} CREATE TRIGGER consent_record_is_never_emptied BEFORE TRUNCATE ON consent_record
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
{{sqlite}} CREATE TRIGGER consent_record_is_final BEFORE UPDATE ON consent_record
BEGIN SELECT RAISE(ABORT, 'consent_record is append-only: UPDATE is refused'); END;
{{sqlite}} CREATE TRIGGER consent_record_stays BEFORE DELETE ON consent_record
BEGIN SELECT RAISE(ABORT, 'consent_record is append-only: DELETE is refused'); END;

{{postgresql}} CREATE TRIGGER consent_act_stays BEFORE UPDATE OR DELETE ON consent_act
FOR EACH ROW EXECUTE FUNCTION refuse_change();
{{postgresql}} CREATE TRIGGER consent_act_is_never_emptied BEFORE TRUNCATE ON consent_act
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
{{sqlite}} CREATE TRIGGER consent_act_is_final BEFORE UPDATE ON consent_act
BEGIN SELECT RAISE(ABORT, 'consent_act is append-only: UPDATE is refused'); END;
{{sqlite}} CREATE TRIGGER consent_act_stays BEFORE DELETE ON consent_act
BEGIN SELECT RAISE(ABORT, 'consent_act is append-only: DELETE is refused'); END;
